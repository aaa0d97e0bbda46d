"""The bundled model and corpus, and the script that trained the model."""
