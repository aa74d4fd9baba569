"""What a person sees. Values in, renderables out."""
