#!/bin/sh
# An S3 endpoint at port 9000 over a folder; MINIO_ROOT_USER and MINIO_ROOT_PASSWORD are its keys.
set -eu
meta=sqlite3:///var/lib/objects/meta.db
juicefs status "$meta" >/dev/null 2>&1 ||
    juicefs format --storage file --bucket /var/lib/objects/data/ "$meta" etstpm
exec juicefs gateway --multi-buckets --keep-etag --no-usage-report "$meta" 0.0.0.0:9000
