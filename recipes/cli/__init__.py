"""The command line: the console command, help, and the wrapper of every configured command."""
