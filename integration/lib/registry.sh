# shellcheck shell=bash
# A real registry (Debian's docker-registry) on loopback. Source after common.sh.
# start_registry DIR sets REGISTRY=127.0.0.1:PORT; DIR/access.log then tells what clients fetched.
# With REGISTRY_TLS=1 it speaks TLS, by a certificate of its own in DIR/cert.pem; otherwise plain http. With HTPASSWD_FILE=FILE it
# wants a login of that htpasswd(1) file.

start_registry() {
  local dir=$1 port i
  mkdir -p "$dir/data"
  # A port is kept between runs of one directory, so that image names stay the same; a new one if it is taken.
  for i in 1 2 3 4 5; do
    if [ "$i" = 1 ] && [ -s "$dir/port" ]; then port=$(cat "$dir/port"); else port=$(free_port); fi
    cat >"$dir/config.yml" <<CONF
version: 0.1
log:
  level: warn
  accesslog:
    disabled: false
storage:
  filesystem:
    rootdirectory: $dir/data
  delete:
    enabled: true
http:
  addr: 127.0.0.1:$port
CONF
    if [ -n "${HTPASSWD_FILE:-}" ]; then printf 'auth: {htpasswd: {realm: test, path: %s}}\n' "$HTPASSWD_FILE" >>"$dir/config.yml"; fi
    if [ "${REGISTRY_TLS:-}" = 1 ]; then
      [ -s "$dir/cert.pem" ] || openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 3650 -subj /CN=registry \
        -addext subjectAltName=IP:127.0.0.1 -keyout "$dir/key.pem" -out "$dir/cert.pem" 2>/dev/null
      printf '  tls:\n    certificate: %s\n    key: %s\n' "$dir/cert.pem" "$dir/key.pem" >>"$dir/config.yml"
    fi
    docker-registry serve "$dir/config.yml" >>"$dir/access.log" 2>>"$dir/error.log" &
    REGISTRY_PID=$!
    if wait_until 5 registry_answers "$port" "$REGISTRY_PID"; then
      echo "$port" >"$dir/port"
      REGISTRY=127.0.0.1:$port
      at_exit "stop_pid $REGISTRY_PID"
      export REGISTRY
      return 0
    fi
    stop_pid "$REGISTRY_PID"
  done
  tail -5 "$dir/error.log" >&2
  die "the registry did not start; its log is $dir/error.log"
}

# Ours, not something else that has the port: the process must still be there when the port answers.
registry_answers() {
  kill -0 "$2" && curl -sSk -o /dev/null "$(registry_scheme)://127.0.0.1:$1/v2/" && kill -0 "$2"
}

registry_scheme() { if [ "${REGISTRY_TLS:-}" = 1 ]; then echo https; else echo http; fi; }

stop_registry() { stop_pid "$REGISTRY_PID"; }

# push OCI_LAYOUT:TAG NAME:TAG
push() {
  skopeo copy --quiet --insecure-policy --dest-tls-verify=false "oci:$1" "docker://$REGISTRY/$2"
}

# delete_tag NAME:TAG: the registry no longer has this image; its layers become unreachable by name.
delete_tag() {
  skopeo delete --tls-verify=false "docker://$REGISTRY/$1"
}

# Tells skopeo (and so osctl) that the loopback registry speaks plain http.
write_registries_conf() {
  printf '[[registry]]\nlocation = "%s"\ninsecure = true\n' "${2:-$REGISTRY}" >"$1"
}
