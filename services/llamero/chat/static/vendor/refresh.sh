#!/bin/sh
# Fetches the page's two libraries anew, at the versions named here, and prints their sha256 for README.md.
set -eu
MARKED=18.2.1
DOMPURIFY=3.4.18
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
npm pack --silent "marked@$MARKED" "dompurify@$DOMPURIFY" >/dev/null
for name in "marked-$MARKED" "dompurify-$DOMPURIFY"; do
  mkdir "$name"
  tar -xzf "$name.tgz" -C "$name" --strip-components=1
done
cp "marked-$MARKED/lib/marked.umd.js" "$here/marked.umd.js"
cp "marked-$MARKED/LICENSE" "$here/LICENSE-marked.txt"
cp "dompurify-$DOMPURIFY/dist/purify.min.js" "$here/purify.min.js"
cp "dompurify-$DOMPURIFY/LICENSE" "$here/LICENSE-dompurify.txt"
cd "$here"
sha256sum marked.umd.js purify.min.js
