#!/bin/bash
# shellcheck disable=SC2016  # commands of claims are evaluated when they are checked
# Part of make test: packages-test.sh deb|rpm: drop-ins that ask for packages, on a base with its own apt or dnf, from a repository on
# loopback. Every case is a job of `osctl --direct` on a scratch sysroot; what it says and what it left are looked at.
# `DNF=5 SUITE=forky packages-test.sh rpm` is for dnf 5, which the stable release does not have; PART=kernels ends after those.
. "$(dirname "${BASH_SOURCE[0]}")/lib/common.sh"
need_root test
KIND=${1:-deb}
case $KIND in deb | rpm) ;; *) die "usage: packages-test.sh deb|rpm" ;; esac
for part in rootfs "${KIND}s" kernels in_place check; do
  # shellcheck source=/dev/null
  . "$REPO_DIR/integration/lib/$part.sh"
done

D=$WORK/packages-$KIND${DNF:-}
R=$D/repo

# What the repository has, and what the base has of it.
make_packages() {
  local s=$R/scripts f=$R/files name
  rm -rf "$R"
  mkdir -p "$R"
  # A service with a user, a configuration file, state, an alternative, and something in /opt.
  mkdir -p "$f/etc" "$f/usr/lib/systemd/system" "$f/usr/bin" "$f/opt/agent" "$s"
  echo 'colour=red' >"$f/etc/agent.conf"
  printf '[Service]\nExecStart=/usr/bin/agent\nUser=agent\n[Install]\nWantedBy=multi-user.target\n' >"$f/usr/lib/systemd/system/agent.service"
  printf '#!/bin/sh\necho agent\n' >"$f/usr/bin/agent"
  chmod 755 "$f/usr/bin/agent"
  echo content >"$f/opt/agent/data"
  {
    cat <<'SCRIPT'
#!/bin/sh
set -e
# What an installer must not have: a network, the host, or anything else of root's than files.
if (exec 3<>"/dev/tcp/127.0.0.1/$(cat /usr/share/port 2>/dev/null || echo 80)") 2>/dev/null; then echo "there is a network"; exit 1; fi
[ ! -e /sysroot/ostree ] || { echo "the host is there"; exit 1; }
(echo x >/proc/sys/kernel/hostname) 2>/dev/null && { echo "proc is writable"; exit 1; }
mount -t tmpfs tmpfs /mnt 2>/dev/null && { echo "it can mount"; exit 1; }
SCRIPT
    adds_user agent
    adds_alternative thing /usr/bin/agent
    cat <<'SCRIPT'
install -d -o agent -g agent -m 750 /var/lib/agent
install -m 2755 -g agent /dev/null /usr/bin/agent-helper
mkdir -p /etc/systemd/system/multi-user.target.wants
ln -s /usr/lib/systemd/system/agent.service /etc/systemd/system/multi-user.target.wants/
echo "installed $(date)" >/var/log/agent.log
SCRIPT
  } >"$s/after"
  package "$R" agent 1.0 requires "$(at_least agent-common 1)"
  mkdir -p "$f/usr/share/agent"
  echo 1 >"$f/usr/share/agent/common"
  package "$R" agent-common 1.0
  for name in hotfix leftover libbase; do
    mkdir -p "$f/usr/share/$name"
    echo 1 >"$f/usr/share/$name/version"
    package "$R" "$name" 1.0 provides /bin/sh
  done
  mkdir -p "$R/base"
  for name in hotfix leftover libbase; do mv "$R/$(package_file "$name" 1.0)" "$R/base/"; done
  mkdir -p "$f/usr/share/hotfix"
  echo 2 >"$f/usr/share/hotfix/version"
  package "$R" hotfix 1.1
  mkdir -p "$f/usr/share/hotfix-extra"
  echo 1 >"$f/usr/share/hotfix-extra/version"
  package "$R" hotfix-extra 1.0
  package "$R" too-new 1.0 requires "$(at_least libbase 99)"
  package "$R" rival 1.0 conflicts leftover
  mkdir -p "$s" && printf '#!/bin/sh\necho "no licence was found"\nexit 3\n' >"$s/after"
  package "$R" unlicensed 1.0
  mkdir -p "$f/var/lib/stateful" && echo data >"$f/var/lib/stateful/data"
  package "$R" stateful 1.0
  mkdir -p "$f/foreign" && echo data >"$f/foreign/data"
  package "$R" strange 1.0
  mkdir -p "$s" && printf '#!/bin/sh\nsleep 98765\n' >"$s/after"
  package "$R" hanging 1.0
  mkdir -p "$f/usr/share/unsigned"
  echo 1 >"$f/usr/share/unsigned/version"
  UNSIGNED=1 package "$R" unsigned 1.0
  # What would make two hosts differ.
  mkdir -p "$s" && printf '#!/bin/sh\ndate +%%s%%N >/usr/share/planted\n' >"$s/after"
  package "$R" clock 1.0
  packages_index "$R"
}

# extension TAG FILE...: LAYOUT:TAG of an image with a repository of these packages.
extension() {
  local tag=$1 t=$D/extension place
  shift
  rm -rf "$t"
  place=$t/usr/share/osctl/extensions
  mkdir -p "$place"
  cp "$@" "$place"
  packages_index "$place"
  tar -C "$t" --sort=name --mtime=@1704067200 --numeric-owner -cf "$D/$tag.tar" .
  python3 "$REPO_DIR/integration/lib/oci.py" "$D/layout" "$tag" "$D/$tag.tar" >/dev/null
}

# image TAG [PACKAGE]...: LAYOUT:TAG of the base with these packages.
image() {
  local tag=$1 t=$D/tree
  shift
  rm -rf "$t"
  mkdir "$t"
  tar -xpf "$D/base.tar" -C "$t" --exclude='./dev/*'
  with_packages "$t" "$@"
  kernel_of_image "$t"
  for d in home srv opt mnt; do rm -rf "${t:?}/$d" && ln -s "var/$d" "$t/$d"; done
  rm -rf "${t:?}/root" && ln -s var/roothome "$t/root"
  find "$t/var" "$t/run" "$t/tmp" "$t/boot" -mindepth 1 -delete
  echo "$PORT" >"$t/usr/share/port"
  # A user that gets its number at the first boot; $D/booted has the accounts then.
  echo 'u vendor - "made at boot"' >"$t/usr/lib/sysusers.d/vendor.conf"
  rm -rf "$D/booted"
  mkdir -p "$D/booted/usr/lib"
  cp -r "$t/etc" "$D/booted/"
  cp -r "$t/usr/lib/sysusers.d" "$D/booted/usr/lib/"
  systemd-sysusers --root="$D/booted" 2>/dev/null
  # Times of files are no part of an image.
  tar -C "$t" --sort=name --mtime=@1704067200 --numeric-owner -cf "$D/$tag.tar" .
  rm -rf "$t"
  python3 "$REPO_DIR/integration/lib/oci.py" "$D/layout" "$tag" "$D/$tag.tar" >/dev/null
}

serve() {
  PORT=$(free_port)
  (cd "$R" && exec python3 -m http.server --bind 127.0.0.1 "$PORT") >"$D/http.log" 2>&1 &
  HTTP=$!
  at_exit "stop_pid $HTTP"
  wait_until 5 curl -fsS -o /dev/null "http://127.0.0.1:$PORT/" || die "the repository does not answer"
}

# host DIR [TAG]: from now on osctl works on this sysroot, which is made, with this image, if it is missing.
host() {
  H=$D/$1
  STATE=$H/root/ostree/osctl/unavailable.json
  if [ -d "$H/root" ]; then return 0; fi
  mkdir -p "$H/config/etc/osctl/derive.d"
  dropin 10-repo "$(repository)"
  mkdir -p "$H/root" "$H/config/etc/osctl/derive.d" "$H/config/etc/containers"
  echo '{"default":[{"type":"insecureAcceptAnything"}]}' >"$H/config/etc/containers/policy.json"
  ostree admin init-fs --modern "$H/root" 2>/dev/null || ostree admin init-fs "$H/root"
  osctl rebase "oci:$D/layout:${2:-v1}"
  cp "$D/booted/etc/passwd" "$D/booted/etc/group" "$(next)/etc/"
}

osctl() {
  "$OSCTL" --direct --sysroot "$H/root" --config-root "$H/config" "$@" >"$D/out" 2>"$D/err" && return 0
  local status=$?
  cat "$D/err"
  return "$status"
}

interrupted() { OSCTL_FAILPOINTS=$1 setsid --wait "$OSCTL" --direct --sysroot "$H/root" --config-root "$H/config" "${@:2}" >"$D/out" 2>"$D/err"; }

# A job whose package sleeps for ever; its process is told to end, and everything that it started goes with it.
hangs_and_is_ended() {
  local pid since
  dropin 70-hang 'packages: [hanging]'
  "$OSCTL" --direct --sysroot "$H/root" --config-root "$H/config" reconcile >"$D/out" 2>"$D/err" &
  pid=$!
  wait_until 30 pgrep -f 'sleep 98765' >/dev/null || { cat "$D/err"; return 1; }
  since=$SECONDS
  kill -TERM "$pid"
  wait "$pid" || true
  wait_until 10 eval '! pgrep -f "sleep 98765" >/dev/null' || return 1
  forget 70-hang
  echo "over after $((SECONDS - since)) s"
  [ $((SECONDS - since)) -le 10 ]
}

# dropin NAME TEXT
dropin() { printf '%s\n' "$2" >"$H/config/etc/osctl/derive.d/$1.yaml"; }

forget() { rm -f "$H/config/etc/osctl/derive.d/$1.yaml"; }
next() { default_deployment "$H/root"; }
checksum() { basename "$(next)"; }
has() { [ "$(cat "$(next)/$1")" = "$2" ]; }
lacks() { [ ! -e "$(next)/$1" ] && [ ! -L "$(next)/$1" ]; }
lists_dropin() { grep -qxF -- "$1" "$edited"; }
lists() { grep -qxF "$2" "$(next)/$1"; }

# refused WORDS COMMAND...: it fails, says this, and leaves everything as it was.
refused() {
  local words=$1 before
  shift
  before=$(checksum)
  if osctl "$@"; then
    echo "it succeeded"
    return 1
  fi
  grep -qF -- "$words" "$D/err" || { cat "$D/err"; return 1; }
  [ "$(checksum)" = "$before" ] || { echo "something was deployed"; return 1; }
}

# foreign REQUESTED REMOVE: gives the next deployment the origin that rpm-ostree would have written.
foreign() {
  printf '[origin]\ncontainer-image-reference=ostree-unverified-image:oci:%s\n[packages]\n%s\n[overrides]\n%s\n' "$D/layout:v1" "$1" "$2" \
    >"$(next).origin"
}

# since SECONDS, due: changes what is remembered of packages that cannot be had.
since() { jq ".since = $1" "$STATE" >"$D/state" && cp "$D/state" "$STATE"; }
due() { jq ".next = 0" "$STATE" >"$D/state" && cp "$D/state" "$STATE"; }

# said WORDS COMMAND...: it succeeds and says this.
said() {
  local words=$1
  shift
  osctl "$@" || { cat "$D/err"; return 1; }
  grep -qF -- "$words" "$D/out" "$D/err" || { cat "$D/out" "$D/err"; return 1; }
}

# What the drop-ins say of the repository.
repository() { printf "repos: [{id: test, baseurl: 'http://127.0.0.1:%s/', %s}]\n" "$PORT" "$(repository_key)"; }

database_knows() { database_has "$(next)" "$1" "$2"; }
no_leftovers() { [ -z "$(ls -A "$H/root/ostree/osctl/work")" ] && ! grep -q "$D" /proc/mounts; }
accounts_are_the_bases() { cmp "$(next)/usr/etc/passwd" "$H/passwd" && cmp "$(next)/usr/etc/group" "$H/group"; }
fsck() { ostree fsck --repo="$H/root/ostree/repo"; }

say "Packages in drop-ins: a base with ${KIND}s, and a repository on loopback"
profile=${PROFILE:-dev}
(cd "$REPO_DIR" && "${CARGO:-cargo}" build --locked --quiet --profile "$profile" --bins)
OSCTL=${CARGO_TARGET_DIR:-$REPO_DIR/target}/${profile/#dev/debug}/osctl
mkdir -p "$D"
bootstrap "$D" "${PACKAGE_BASE[@]}"
for dir in "$D"/host-*; do remove_tree "$dir"; done
rm -rf "$D/layout"
mkdir -p "$D/layout"
packages_key "$D"
make_packages
make_kernels
serve
kernel_cases
if [ "${PART:-}" = kernels ]; then
  checked
  exit
fi
image v1 "$R"/base/*
image v2 "$R/$(package_file hotfix 1.1)" "$R/base/$(package_file leftover 1.0)" "$R/base/$(package_file libbase 1.0)"

host host-a
cp "$(next)/usr/etc/passwd" "$(next)/usr/etc/group" "$H"
check "without packages there is no lock to export" refused 'has no lock' lock export
dropin 50-agent 'packages: [agent]'
check "a check says which packages would come, and why" eval 'said "install agent $(version 1.0) (50-agent.yaml)" reconcile --check && grep -qF "install agent-common $(version 1.0) (needed by what is requested)" "$D/out" "$D/err"'
check "a package is installed with what it needs" osctl reconcile
check "its files are there" has usr/share/agent/common 1
check "its database knows it, and what it needs" eval 'database_knows agent 1.0 && database_knows agent-common 1.0'
check "its configuration is a default of the image" has usr/etc/agent.conf colour=red
check "its alternative is there" test "$(readlink "$(next)/usr/etc/alternatives/thing")" = /usr/bin/agent
check "its service is enabled" test -L "$(next)/usr/etc/systemd/system/multi-user.target.wants/agent.service"
check "what it has in /opt is below /usr" has usr/lib/opt/agent/data content
check "and is linked to at boot" lists usr/lib/tmpfiles.d/osctl-packages.conf 'L /var/opt/agent - - - - ../../usr/lib/opt/agent'
check "its state is made at boot" eval 'grep -q "^d /var/lib/agent 0750 [0-9]* [0-9]* -$" "$(next)/usr/lib/tmpfiles.d/osctl-packages.conf"'
check "its user is made at boot" eval 'grep -q "^u agent [0-9]*:[0-9]* " "$(next)/usr/lib/sysusers.d/00-osctl-packages.conf"'
check "its number is none that the host has given to a user of the image" eval 'grep -q ^vendor: "$(next)/etc/passwd" && ! cut -d: -f3 "$D/booted/etc/passwd" | grep -qx "$(jq .users.agent.uid "$(next)/usr/lib/osctl/derive.lock")"'
check "the accounts of the image are as they were" accounts_are_the_bases
check "a file keeps its group and special mode" eval '[ "$(stat -c %a:%g "$(next)/usr/bin/agent-helper")" = "2755:$(jq ".groups.agent" "$(next)/usr/lib/osctl/derive.lock")" ]'
check "nothing of installing is left in the tree" eval 'lacks usr/sbin/policy-rc.d && no_traces "$(next)"'
check "nothing of installing is left on the host" no_leftovers
check "the lock has the package's digest" eval '[ "$(jq -r ".packages[] | select(.name == \"agent\").digest" "$(next)/usr/lib/osctl/derive.lock")" = "sha256:$(sha256sum <"$R/$(package_file agent 1.0)" | cut -d" " -f1)" ]'
check "again, there is nothing to do" said 'No changes in input.' reconcile
check "the lock is exported as it is in the tree" eval 'osctl lock export && cmp "$D/out" "$(next)/usr/lib/osctl/derive.lock"'
cp "$D/out" "$D/lock"

check "a package is traced back to its drop-in" said 'package agent: applied, version 1.0' why agent
check "what it needs is traced back to the request" said ': needed by what is requested: agent' why agent-common
check "the status counts it" said 'Deviates: 1 package' status

# The same by command: one drop-in is edited.
edited=$H/config/etc/osctl/derive.d/90-osctl.yaml
check "a command installs a package" eval 'osctl install hotfix-extra && has usr/share/hotfix-extra/version 1'
check "it is declared in the drop-in that is edited" lists_dropin '  - hotfix-extra'
check "a package that nobody has leaves the drop-in as it is" eval 'refused "no repository has nope" install nope && lists_dropin "  - hotfix-extra" && ! grep -q nope "$edited"'
check "a command takes a package of the image in another version" eval 'osctl override replace "$(pinned hotfix 1.1)" && has usr/share/hotfix/version 2'
check "and as it was" eval 'osctl override reset hotfix && has usr/share/hotfix/version 1'
check "a command swaps packages" eval 'osctl override remove leftover --install rival && lacks usr/share/leftover && database_knows rival 1.0'
check "what another drop-in requests is not uninstalled" refused 'package agent is requested by 50-agent.yaml' uninstall agent
check "commands undo what commands did" eval 'osctl uninstall hotfix-extra rival && osctl override reset --all && has usr/share/leftover/version 1 && lacks usr/share/hotfix-extra'
rm "$edited"
check "then the drop-in declares nothing" said 'No changes in input.' reconcile

# A host of rpm-ostree: what its origin asks for becomes a drop-in.
host host-adopt
adopted=$H/config/etc/osctl/derive.d/50-adopted.yaml
foreign "requested=nope;" "remove=leftover;"
check "a take-over that fails writes no drop-in, and leaves the origin" eval 'refused "no repository has nope" adopt && [ ! -e "$adopted" ] && grep -qx "requested=nope;" "$(next).origin"'
foreign "requested=agent;" "remove=leftover;"
check "requests of an origin are applied when it is taken over" eval 'osctl adopt && database_knows agent 1.0 && lacks usr/share/leftover'
check "they are a drop-in from then on" said 'package agent: applied, version 1.0' why agent
check "which is written with the deployment" grep -qx "  - 'agent'" "$adopted"
check "there is nothing to do after that" said 'No changes in input.' reconcile
if [ "$KIND" = rpm ]; then
  check "rpm-ostree gets its requests back" eval 'osctl release --to rpm-ostree && grep -qx "requested=agent;" "$(next).origin" && grep -qx "remove=leftover;" "$(next).origin"'
  check "with the image as it is" eval 'lacks usr/share/agent && has usr/share/leftover/version 1 && ! grep -q osctl "$(next).origin"'
  check "and can be taken over again" eval 'osctl adopt && database_knows agent 1.0'
else
  check "rpm-ostree does not get packages of apt" refused 'rpm-ostree cannot express what this host has: package agent' release --to rpm-ostree
fi
host host-a

# Packages that are files beside drop-ins, and those of an image that carries a repository.
derive_d=$H/config/etc/osctl/derive.d
mkdir -p "$derive_d/packages" "$R/files/usr/share/local"
echo 1 >"$R/files/usr/share/local/version"
UNSIGNED=1 package "$R" local 1.0 requires "$(at_least hotfix-extra 1)"
mv "$R/$(package_file local 1.0)" "$derive_d/packages/"
dropin 70-local "packages: [{local: packages/$(package_file local 1.0)}]"
check "a package file is installed with what it needs from a repository" eval 'osctl reconcile && has usr/share/local/version 1 && database_knows hotfix-extra 1.0'
check "the lock says that it was a file" eval '[ "$(jq -r ".packages[] | select(.name == \"local\").source" "$(next)/usr/lib/osctl/derive.lock")" = "local:packages/$(package_file local 1.0)" ]'
check "the file is traced back to its drop-in" said "package local:packages/$(package_file local 1.0): applied, version $(version 1.0)" why "local:packages/$(package_file local 1.0)"
cp "$R/$(package_file hotfix 1.1)" "$derive_d/packages/"
dropin 70-local "packages: [{local: packages/$(package_file hotfix 1.1)}]"
check "a package file does not replace a package of the base by itself" refused hotfix reconcile
dropin 70-local "override-replace: [{local: packages/$(package_file hotfix 1.1)}]"
check "unless it is told to" eval 'osctl reconcile && has usr/share/hotfix/version 2 && [ "$(jq -r ".replaced[0].version" "$(next)/usr/lib/osctl/derive.lock")" = "$(version 1.0)" ]'
echo 'no package' >"$derive_d/packages/bad.$KIND"
dropin 70-local "packages: [{local: packages/bad.$KIND}]"
check "a file that is no package is refused by its name" refused "packages/bad.$KIND: it is no package" reconcile
chmod 666 "$derive_d/packages/bad.$KIND"
check "and one that anybody may write to" refused 'can be written by group or others' reconcile
rm -r "$derive_d/packages"
check "and one that is not there" refused 'packages: does not exist' reconcile
forget 70-local

rm -rf "$D/extra"
mkdir -p "$D/extra" "$R/files/usr/share/agent"
echo 3 >"$R/files/usr/share/agent/common"
UNSIGNED=1 package "$R" agent-common 3.0
mkdir -p "$R/files/usr/share/extra"
echo 1 >"$R/files/usr/share/extra/version"
UNSIGNED=1 package "$R" extra 1.0 requires "$(at_least agent-common 1)"
mv "$R/$(package_file agent-common 3.0)" "$R/$(package_file extra 1.0)" "$D/extra/"
extension ext-1 "$D/extra"/*
forget 50-agent
dropin 70-extra "extensions: {image: 'oci:$D/layout:ext-{label:generation}', packages: [extra]}"
check "a label that the image does not have is named" refused 'the base image has no label generation' reconcile
dropin 70-extra "extensions: {image: 'oci:$D/layout:v1', packages: [extra]}"
check "an image without a repository is no extension" refused 'has no repository of' reconcile
dropin 70-extra "extensions: {image: 'oci:$D/layout:ext-1', packages: [extra]}"
check "a package of an extension is installed" eval 'osctl reconcile && has usr/share/extra/version 1'
check "with what it needs from the same image, before other repositories" has usr/share/agent/common 3
check "the image is in the lock by its digest" eval '[ "$(jq -r ".images[\"oci:$D/layout:ext-1\"]" "$(next)/usr/lib/osctl/derive.lock")" = "$(skopeo inspect --format "{{.Digest}}" "oci:$D/layout:ext-1")" ]'
mv "$D/layout" "$D/layout.gone"
printf 'files: [{path: /usr/lib/more, contents: {inline: x}}]\n' >"$derive_d/75-more.yaml"
check "nothing of it is needed to derive again" eval 'osctl reconcile && has usr/share/extra/version 1'
check "an image that cannot be had is that of before" said 'packages are those of before' reconcile --update-lock
mv "$D/layout.gone" "$D/layout"
forget 75-more
forget 70-extra
dropin 50-agent 'packages: [agent]'
check "and then there is no extension any more" eval 'osctl reconcile && lacks usr/share/extra && has usr/share/agent/common 1'

# A file beside it needs no package manager.
printf 'files: [{path: /etc/motd.d/x, contents: {inline: hello}}]\n' >"$H/config/etc/osctl/derive.d/60-file.yaml"
check "a file is added" osctl reconcile
check "without installing anything again" eval '! grep -q derive.install "$D/err"'
forget 60-file

while IFS='|' read -r sentence text words; do
  dropin 70-bad "$text"
  check "$sentence" refused "$words" reconcile
  forget 70-bad
done < <(sed "s/@TOO_NEW@/$(at_least libbase 99)/; s/@HOTFIX_9@/$(pinned hotfix 9)/; s/@NO_HOTFIX_9@/$(no_version hotfix 9)/" <<'TABLE'
a package that nobody has is named|packages: [nope]|no repository has nope
a pattern is no name|packages: [hotfi.]|no repository has hotfi.
a request that does not fit the base names the package in conflict|packages: [too-new]|@TOO_NEW@
a request never removes a package of the base|packages: [rival]|leftover
a script that fails is named with what it said|packages: [unlicensed]|no licence was found
a file in /var is refused by its name|packages: [stateful]|/var/lib/stateful/data
a file outside the tree is refused by its name|packages: [strange]|/foreign
a version that nobody has is named|override-replace: [@HOTFIX_9@]|@NO_HOTFIX_9@
TABLE
)
if [ "$KIND" = rpm ]; then
  dropin 70-bad 'packages: [unsigned]'
  check "a package that nobody signed is refused" refused 'unsigned of repository test is not signed with its keys' reconcile
  dropin 70-bad 'packages: [unsigned, nope]'
  check "a name that nobody has is said first" refused 'no repository has nope' reconcile
  forget 70-bad
  mkdir -p "$H/config/etc/rpm-ostree/origin.d"
  echo 'repos: [elsewhere]' >"$H/config/etc/rpm-ostree/origin.d/a.yaml"
  check "a treefile chooses among repositories" refused 'no repository has the id elsewhere' reconcile --update-lock
  printf 'override-replace: [{from: {repo: test}, packages: [hotfix]}]\n' >"$H/config/etc/rpm-ostree/origin.d/a.yaml"
  check "and takes a package of the base in the version that one of them has" eval 'osctl reconcile && has usr/share/hotfix/version 2 && osctl status -v && grep -q "replacement of package hotfix: applied, version 1.1-1 (origin.d/a.yaml)" "$D/out"'
  printf 'override-replace: [{from: {repo: test}, packages: [coreutils]}]\n' >"$H/config/etc/rpm-ostree/origin.d/a.yaml"
  check "one that it does not have is named" refused 'repository test has no package coreutils' reconcile
  rm -r "$H/config/etc/rpm-ostree"
  check "without it the package is as it was" eval 'osctl reconcile && has usr/share/hotfix/version 1'
fi
check "nothing of what was refused is left" no_leftovers
dropin 70-bad 'packages: [nope]'
osctl reconcile || true
check "a request that failed is shown with the reason" eval 'osctl status -v && grep -A1 "Requests that are not met" "$D/out" | grep -q "package nope (70-bad.yaml).*no repository has nope"'
forget 70-bad

dropin 80-hotfix "override-replace: [$(pinned hotfix 1.1)]"
dropin 81-leftover 'override-remove: [leftover]'
check "a package of the base is replaced, and one removed" osctl reconcile
check "the new one is there" has usr/share/hotfix/version 2
check "the other is gone" lacks usr/share/leftover
check "the lock says what the base had" eval '[ "$(jq -r ".replaced[0].version, .removed[0].name" "$(next)/usr/lib/osctl/derive.lock" | xargs)" = "$(version 1.0) leftover" ]'
forget 81-leftover
check "what was removed comes back" eval 'osctl reconcile && has usr/share/leftover/version 1'

mkdir -p "$R/files/usr/share/leftover"
echo 2 >"$R/files/usr/share/leftover/version"
package "$R" leftover 1.5
packages_index "$R"
dropin 81-leftover 'packages: [leftover]'
check "what the base has is redundant, and stays although there is a newer one" eval 'osctl reconcile && has usr/share/leftover/version 1 && [ "$(jq -r .packages.leftover.outcome "$(next)/usr/lib/osctl/derived.json")" = redundant ]'
forget 81-leftover
osctl reconcile

# The repository gets a newer agent: a reconcile keeps what fits, an upgrade does not.
mkdir -p "$R/files/usr/share/agent"
echo 2 >"$R/files/usr/share/agent/common"
package "$R" agent-common 2.0
packages_index "$R"
check "a reconcile keeps the version that fits" eval 'osctl reconcile && has usr/share/agent/common 1'
check "with --update-lock it is solved anew" eval 'osctl reconcile --update-lock && has usr/share/agent/common 2'
cp "$D/lock" "$H/config/etc/osctl/derive.lock"
check "a lock of other requests does not count" said 'No changes in input.' reconcile
check "and is refused where it must" refused 'it is for other requests' reconcile --frozen
forget 80-hotfix
check "one that was exported, and fits, decides" eval 'osctl reconcile --frozen && has usr/share/agent/common 1'
rm "$H/config/etc/osctl/derive.lock"
check "--frozen without a lock is refused" refused 'it does not exist' reconcile --frozen

# Another base, whose version of a package makes the hotfix redundant; then no repository at all.
dropin 80-hotfix "override-replace: [$(pinned hotfix 1.1)]"
osctl reconcile
check "another base" osctl rebase "oci:$D/layout:v2"
check "and the status says that the hotfix can go" said 'redundant: the image has this version now, the hotfix can go (80-hotfix.yaml)' status -v
check "its own version is the one that was asked for" eval '[ "$(jq -r ".packages[\"$(pinned hotfix 1.1)\"].outcome" "$(next)/usr/lib/osctl/derived.json")" = redundant ]'
check "the packages are there, too" has usr/share/agent/common 2
forget 80-hotfix
osctl reconcile
stop_pid "$HTTP"
check "without the repository a base is derived from what is kept" said 'packages are those of before' rebase "oci:$D/layout:v1"
check "with all its packages" eval 'has usr/share/agent/common 2 && database_knows agent 1.0'
check "the host is degraded, and says why and until when" said 'those of before are used; next attempt' status
check "it is not tried again before that" said 'Nothing is to be tried again now.' reconcile --retry
due
check "then it is" said 'packages are those of before' reconcile --retry
check "and the next attempt is further away" eval '[ "$(jq "[.attempts, (.next - .since) > 1800] | @text" "$STATE")" = "\"[2,true]\"" ]'
dropin 70-more 'packages: [clock]'
check "what is not kept is not to be had" refused 'the package repositories cannot be used' reconcile
echo 'on-unavailable: skip' >>"$H/config/etc/osctl/derive.d/70-more.yaml"
check "a drop-in that may be left out is" said 'left out, because its packages cannot be had: 70-more.yaml' reconcile
check "and the others are not" has usr/share/agent/common 2
check "one that says nothing is not left out" eval 'sed -i "/on-unavailable/d" "$H/config/etc/osctl/derive.d/70-more.yaml" && refused "cannot be used" reconcile'
printf '[derive]\ngrace = "1h"\ndegraded-policy = "skip"\n' >"$H/config/etc/osctl/osctld.toml"
check "nor is it before the grace is over" refused 'cannot be used' reconcile
since 0
check "afterwards it is, where the host is configured so" said 'left out, because its packages cannot be had' reconcile
rm "$H/config/etc/osctl/osctld.toml"
forget 70-more
forget 50-agent
check "removing a drop-in needs no repository" eval 'osctl reconcile && lacks usr/share/agent'
check "and the host is degraded no more" eval 'osctl status --fail-if-degraded && [ ! -e "$STATE" ]'
check "the repository of the host is sound" fsck
before=$(checksum)
check "packages that no deployment has are not kept" eval '! ls "$H/root/ostree/osctl/packages" | grep -q "$(sha256sum <"$R/$(package_file rival 1.0)" | cut -d" " -f1)"'

say "Cut at every point of the two steps"
serve
dropin 10-repo "$(repository)"
dropin 50-agent 'packages: [agent]'
for point in derive.solve derive.solve.done derive.install derive.install.done; do
  for action in error kill; do
    # What was made is kept, and found again.
    ostree --repo="$H/root/ostree/repo" refs --delete osctl/layered
    check "$action at $point leaves the host as it was" eval '! interrupted "$point=$action" reconcile && [ "$(checksum)" = "$before" ]'
  done
done
check "and the next job gets there" eval 'osctl reconcile && has usr/share/agent/common 2'
check "with nothing left over" no_leftovers
check "a script that hangs ends with its job" hangs_and_is_ended
check "what it left is gone with the next job" eval 'osctl reconcile && no_leftovers'

say "The same on two hosts"
# The same requests, of hosts that differ in what must not matter.
host host-b
dropin 50-agent 'packages: [agent]'
dropin 60-hotfix "override-replace: [$(pinned hotfix 1.1)]"
check "one host" osctl reconcile
one=$(checksum)
host host-c
dropin 60-hotfix "override-replace: [$(pinned hotfix 1.1)]"
dropin 50-agent 'packages: [agent]'
sleep 1.1
check "another host, with another umask, zone, language and name" unshare --uts bash -c '
  hostname another; umask 077; export TZ=Asia/Tokyo LANG=de_DE.UTF-8
  exec "$0" --direct --sysroot "$1/root" --config-root "$1/config" reconcile' "$OSCTL" "$H"
check "they have the same commit" test "$(checksum)" = "$one"

say "The same as an image"
usr_of() { ostree --repo="$H/root/ostree/repo" ls -R -C "$(checksum | cut -d. -f1)" /usr | sed 's/^\(d[^ ]* [^ ]* [^ ]*\) .* \//\1 \//'; }
build() {
  TMPDIR=$D "$OSCTL" derive --config-root "$H/config" --base "oci:$D/layout:v1" -i "$H/config" -o "oci:$D/built:1" "$@" >"$D/out" 2>"$D/err" && return 0
  cat "$D/err"
  return 1
}
built() { build --json && jq -r ".$1" "$D/out"; }
rm -rf "$D/built"
usr_of >"$D/usr"
check "it is built from what the hosts have" build
check "once more there is nothing to do" eval 'build && grep -qF "No changes in input." "$D/out"'
cp "$(next)/usr/lib/osctl/derive.lock" "$D/lock"
check "nor with the lock of the host" eval 'build --lock "$D/lock" --frozen && grep -qF "No changes in input." "$D/out"'
check "nor with packages that are solved anew, and the same" eval '[ "$(built changed)" = false ] && [ "$(TMPDIR=$D build --update-lock --json && jq -r .changed "$D/out")" = false ]'
in_place_cases
host host-d
forget 10-repo
check "a host moves to it" osctl rebase "oci:$D/built:1"
check "and has the same files" eval 'usr_of | diff "$D/usr" -'
check "nothing of building is left" eval '! ls -d "$D"/osctl-derive-*'
host host-c
dropin 70-clock 'packages: [clock]'
osctl reconcile
one=$(checksum)
host host-b
dropin 70-clock 'packages: [clock]'
osctl reconcile
check "a planted time makes them differ" test "$(checksum)" != "$one"
for dir in "$D"/host-*; do remove_tree "$dir"; done
checked
