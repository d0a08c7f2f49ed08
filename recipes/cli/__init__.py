"""The command line: the console command, help, completion, and what every configured command does around its work."""
