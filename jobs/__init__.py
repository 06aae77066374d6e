"""What a person starts. Each file is a subcommand of `pairstream` and opens with its command line."""
