"""What is made from the parser: shell completion and manual pages. So they say what the commands do, plugins' too."""
