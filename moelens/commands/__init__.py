"""The commands of the command line and of `%moe`. Each command calls one public function."""
