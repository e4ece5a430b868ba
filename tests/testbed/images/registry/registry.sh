#!/bin/sh
set -eu
cat > /etc/registry.yml <<'YAML'
version: 0.1
log:
  level: warn
  accesslog:
    disabled: true
storage:
  filesystem:
    rootdirectory: /srv/registry
  delete:
    enabled: true
http:
  addr: :5000
YAML
if [ "${LOGIN:-}" = 1 ]; then
    python3 -W ignore -c 'import crypt; print("puller:" + crypt.crypt("testbed-secret", crypt.mksalt(crypt.METHOD_BLOWFISH, rounds=16)))' > /etc/htpasswd
    cat >> /etc/registry.yml <<'YAML'
auth:
  htpasswd:
    realm: testbed
    path: /etc/htpasswd
YAML
fi
exec docker-registry serve /etc/registry.yml
