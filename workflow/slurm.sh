#!/bin/sh
# Make sure that Slurm's programs are here: not for a cluster, which has its own, but for the tests that start one of a
# single node. Exit 0: they are. 77: they are not and cannot be installed from here; one line has said how, and these
# tests are skipped. 1: the same in CI on a Debian machine with root, where nothing may be left out.
# The packages' own services do not start without /etc/slurm/slurm.conf, of which there is none.
PATH=$PATH:/usr/sbin:/sbin
PACKAGES="slurmctld slurmd slurm-client munge"
have() { for program in slurmctld slurmd sbatch munged; do command -v $program >/dev/null 2>&1 || return 1; done; }

have && exit 0
status=77
if command -v apt-get >/dev/null 2>&1 && [ "$(id -u)" = 0 ]; then
    echo "installing Debian's $PACKAGES"
    export DEBIAN_FRONTEND=noninteractive
    # shellcheck disable=SC2086
    { apt-get update -qq && apt-get install -qq -y --no-install-recommends $PACKAGES; } >/dev/null || true
    have && exit 0
    [ "${CI:-}" = true ] && status=1
fi
echo "Slurm tests NOT RUN: slurmctld, slurmd, sbatch or munged is missing; on Debian: sudo apt-get install $PACKAGES" >&2
exit $status
