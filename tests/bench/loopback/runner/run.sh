#!/bin/sh
exec "$(dirname "$0")/mtu-bench" "$@"
