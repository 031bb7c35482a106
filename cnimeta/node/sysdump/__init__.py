"""`cnimeta sysdump`: what is known of the plugins on a node, less its secrets, in one archive. Nothing is changed."""
