"""The commands of the command line and of `%moe`; each is one call of one public function."""
