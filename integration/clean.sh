#!/bin/bash
# make clean-demo: removes WORK with everything in it; deployments carry the immutable bit and podman leaves mounts.
. "$(dirname "${BASH_SOURCE[0]}")/lib/common.sh"
need_root clean-demo
[ -d "$WORK" ] || { note "nothing to remove"; exit 0; }
umount_below "$WORK"
find "$WORK" -xdev -path '*/ostree/deploy/*/deploy/*' -prune -type d -exec chattr -i {} +
rm -rf --one-file-system "$WORK"
note "removed $WORK"
