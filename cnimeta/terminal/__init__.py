"""Showing things to people: tables, colours and live screens, where stdout is a terminal; plain text elsewhere."""
