#!/bin/sh
# The browser tests drive Debian's chromium. Install it where that is possible; otherwise say so and go on:
# the tests themselves print why they could not run.
command -v chromium >/dev/null 2>&1 && exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
  echo "installing chromium for the browser tests ..."
  (apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium) >/dev/null 2>&1
fi
command -v chromium >/dev/null 2>&1 || echo "*** NO CHROMIUM HERE: the browser tests will not run. Install the package 'chromium'. ***"
exit 0
