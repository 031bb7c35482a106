"""Records of attachments in one embedded database, and one lock per attachment. See docs/sdk.md."""
