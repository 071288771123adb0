"""How long a backfill will take and what it will cost, before machines are rented for it."""
