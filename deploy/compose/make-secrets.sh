#!/bin/sh
# Writes random passwords for deploy/compose.yaml into the folder secrets beside this script. What is
# there already stays. Only the owner can enter the folder; inside a container, users other than
# root must be able to read the files.
set -eu
cd "$(dirname "$0")"
mkdir -p -m 700 secrets
cd secrets
umask 022

random() {
  od -An -v -tx1 -N 24 /dev/urandom | tr -d ' \n'
}

write() {
  if [ ! -e "$1" ]; then
    cat > "$1.new"
    mv "$1.new" "$1"
  fi
}

random | write postgres_password
printf 'maskloom:%s' "$(random)" | write prefect_auth
if [ ! -e s3_identities ] || [ ! -e s3_credentials ]; then
  id=$(random)
  secret=$(random)
  rm -f s3_identities s3_credentials
  write s3_credentials <<END
[default]
aws_access_key_id = $id
aws_secret_access_key = $secret
END
  write s3_identities <<END
{"identities": [{"name": "maskloom", "actions": ["Admin"],
  "credentials": [{"accessKey": "$id", "secretKey": "$secret"}]}]}
END
fi
