#!/bin/sh
# Makes the database at the first start, then runs the command.
set -eu
if [ ! -d "$PGDATA" ]; then
  # Under another name until it is whole, so that a start that was cut short is done again.
  rm -rf "$PGDATA.new"
  initdb --pgdata="$PGDATA.new" --username="$POSTGRES_USER" --pwfile="$POSTGRES_PASSWORD_FILE" \
    --auth=scram-sha-256 --encoding=UTF8
  echo "host all all all scram-sha-256" >> "$PGDATA.new/pg_hba.conf"
  echo "CREATE DATABASE \"$POSTGRES_DB\"" | postgres --single -D "$PGDATA.new" postgres
  mv "$PGDATA.new" "$PGDATA"
fi
exec "$@"
