"""One version is one process: load, warm, decode, answer, read the prediction, report its digest."""
