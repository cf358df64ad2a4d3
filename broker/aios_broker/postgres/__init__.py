"""The connection to Postgres: addresses, transactions as somebody, migrations."""
