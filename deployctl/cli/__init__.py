"""One small module per verb or pair of verbs: parse, call one thing, show."""
