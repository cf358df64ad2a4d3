#!/bin/sh
# Make the kernel's login: it owns the database, may make the roles of agents, and is no superuser.
# The superuser has no password afterwards: nobody logs in as it but from inside this container.
set -eu

psql --set=ON_ERROR_STOP=1 --set=password="$POSTGRES_PASSWORD" --username=postgres --dbname=aios <<'SQL'
CREATE EXTENSION vector;
CREATE ROLE aios LOGIN CREATEROLE PASSWORD :'password';
ALTER DATABASE aios OWNER TO aios;
ALTER ROLE postgres PASSWORD NULL;
SQL
