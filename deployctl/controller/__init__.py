"""The loop: observe, judge, decide, record, act. The only place where they meet."""
