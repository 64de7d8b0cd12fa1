#!/bin/sh
# Make sure that Chromium and its driver are here. Exit 0: they are. 77: they are not and cannot be installed from here;
# one line has said how, and the browser tests are left out. 1: the same in CI, where nothing may be left out.
have() { command -v chromium >/dev/null 2>&1 && command -v chromedriver >/dev/null 2>&1; }

have && exit 0
if command -v apt-get >/dev/null 2>&1 && [ "$(id -u)" = 0 ]; then
    echo "installing Debian's chromium and chromium-driver"
    export DEBIAN_FRONTEND=noninteractive
    { apt-get update -qq && apt-get install -qq -y --no-install-recommends chromium chromium-driver; } >/dev/null || true
    have && exit 0
fi
echo "browser tests NOT RUN: chromium or chromedriver is missing; on Debian: sudo apt-get install chromium chromium-driver" >&2
[ "${CI:-}" = true ] && exit 1
exit 77
