"""What may be wrong with this machine or with a service, looked at from outside. The one rule: nothing is changed by looking."""
