"""One module a verb, in the words of the specification, and the steps they share."""
