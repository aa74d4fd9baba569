"""Make the traffic look like this: one module per backend, one line here for each.

A backend takes whole desired splits (`apply`), reads back what is in force (`confirmed`), and hands over raw outcomes in batches.
"""

BACKENDS = {"builtin": "deployctl.traffic.builtin:RouterLink"}
"""Name in `spec.service.engine` → import path; loaded only when it is used."""
