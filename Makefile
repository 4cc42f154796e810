# The front door. Each target installs what it needs on Debian and Fedora; elsewhere it lists what is missing.
# PROFILE is a cargo profile: dev for the targets that test, release for `make install`, unless given.
# The bus, polkit, tmpfiles and the links in /usr/lib are read below /usr only: another PREFIX is for whoever has told
# them so.
PREFIX ?= /usr
DESTDIR ?=
CARGO ?= cargo
SHELL := /bin/bash
export PATH := $(HOME)/.cargo/bin:$(PATH)

TEST_PROFILE = $(or $(PROFILE),dev)
INSTALL_PROFILE = $(or $(PROFILE),release)
profile_dir = $(if $(filter dev,$(1)),debug,$(1))
TARGET_DIR = $(or $(CARGO_TARGET_DIR),$(CURDIR)/target)
DEPS = integration/lib/deps.sh
NEED_ROOT = @[ "$$(id -u)" = 0 ] || { echo "error: make $@ needs root: it mounts file systems, makes immutable ostree deployments and boots containers. Try: sudo make $@" >&2; exit 1; }

.PHONY: help demo clean-demo test vm-test bench bench-derive bench-bound lint install
.DEFAULT_GOAL := help

help:
	@echo "make demo        update a scratch host from OS v1 to v2 and boot it (root, about 15 minutes the first time)"
	@echo "make clean-demo  remove everything that demo, vm-test and bench wrote (.work)"
	@echo "make test        every test that needs no VM (root)"
	@echo "make vm-test     boot, update, roll back and compare real systems in nspawn and qemu (root); TIERS=nspawn for the quick part"
	@echo "make bench       pulls against the reference importer and the machine's floor (root, an hour); RUNS=5 SCENARIOS=\"fresh noop\""
	@echo "make bench-derive  what a derivation costs: one file on 30,000, and one package (root, minutes)"
	@echo "make bench-bound   five bound images against podman pull of one after the other (root, minutes)"
	@echo "make lint        formatting, clippy, docs, shellcheck, examples, licences"
	@echo "make install     build and install; DESTDIR= PREFIX=$(PREFIX) PROFILE=$(INSTALL_PROFILE)"

demo:
	$(NEED_ROOT)
	@$(DEPS) demo
	@PROFILE=$(TEST_PROFILE) integration/demo.sh

clean-demo:
	$(NEED_ROOT)
	@integration/clean.sh

test:
	$(NEED_ROOT)
	@$(DEPS) test
	@if $(CARGO) nextest --version >/dev/null 2>&1; then $(CARGO) nextest run --locked; else $(CARGO) test --locked; fi
	@PROFILE=$(TEST_PROFILE) integration/images-test.sh
	@PROFILE=$(TEST_PROFILE) integration/durability-test.sh
	@for kind in deb rpm; do PROFILE=$(TEST_PROFILE) integration/packages-test.sh $$kind || exit 1; done

vm-test:
	$(NEED_ROOT)
	@$(DEPS) vm-test
	@PROFILE=$(TEST_PROFILE) integration/vm/run.sh $(TIERS)
	@if [ -z "$(TIERS)" ]; then PROFILE=$(TEST_PROFILE) integration/two-hosts-test.sh && PROFILE=$(TEST_PROFILE) integration/bound-test.sh && PROFILE=$(TEST_PROFILE) integration/cuts-test.sh; else echo "skipped: two-hosts-test.sh, bound-test.sh and cuts-test.sh, which need all tiers"; fi

bench:
	$(NEED_ROOT)
	@$(DEPS) bench
	@PROFILE=$(INSTALL_PROFILE) RUNS=$(or $(RUNS),5) SCENARIOS="$(SCENARIOS)" integration/bench/bench.sh

bench-derive:
	$(NEED_ROOT)
	@$(DEPS) bench
	@PROFILE=$(INSTALL_PROFILE) RUNS=$(or $(RUNS),5) integration/bench/derive.sh

bench-bound:
	$(NEED_ROOT)
	@$(DEPS) bench
	@PROFILE=$(INSTALL_PROFILE) RUNS=$(or $(RUNS),5) integration/bench/bound.sh

lint:
	@$(DEPS) lint
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --no-deps --quiet
	shellcheck -x -P SCRIPTDIR -P integration/lib $$(find integration .ci -name '*.sh' -o -path '*/image/rig' -o -path '.ci/run')
	$(CARGO) run --locked --quiet --bin osctl -- lint examples/
	@if command -v cargo-deny >/dev/null; then echo "cargo deny check"; $(CARGO) deny check; \
	else echo "skipped: cargo deny is not installed (cargo install cargo-deny), so licences and advisories were not checked"; fi

install: SRC = $(TARGET_DIR)/$(call profile_dir,$(INSTALL_PROFILE))
install: ROOT = $(DESTDIR)$(PREFIX)
install:
	@$(DEPS) build
	$(CARGO) build --locked --profile $(INSTALL_PROFILE) --bins
	install -D -m 755 $(if $(STRIP),-s) $(SRC)/osctl $(ROOT)/bin/osctl
	install -D -m 755 $(if $(STRIP),-s) $(SRC)/osctld $(ROOT)/libexec/osctld
	install -D -m 644 dbus/org.osctl1.conf $(ROOT)/share/dbus-1/system.d/org.osctl1.conf
	install -D -m 644 dbus/org.osctl1.service $(ROOT)/share/dbus-1/system-services/org.osctl1.service
	install -D -m 644 dbus/org.osctl1.policy $(ROOT)/share/polkit-1/actions/org.osctl1.policy
	install -d $(ROOT)/share/dbus-1/interfaces $(ROOT)/lib/systemd/system
	install -m 644 dbus/*.xml $(ROOT)/share/dbus-1/interfaces/
	install -m 644 systemd/*.service systemd/*.timer $(ROOT)/lib/systemd/system/
	install -d $(ROOT)/lib/systemd/system/basic.target.wants
	ln -sfn ../osctl-boot.service $(ROOT)/lib/systemd/system/basic.target.wants/osctl-boot.service
	install -d $(ROOT)/lib/systemd/system/timers.target.wants
	ln -sfn ../osctl-retry.timer $(ROOT)/lib/systemd/system/timers.target.wants/osctl-retry.timer
	install -D -m 644 systemd/osctl.sysusers $(ROOT)/lib/sysusers.d/osctl.conf
	install -D -m 644 systemd/osctl.tmpfiles $(ROOT)/lib/tmpfiles.d/osctl.conf
	sed -i 's|/usr/libexec/osctld|$(PREFIX)/libexec/osctld|; s|/usr/bin/osctl|$(PREFIX)/bin/osctl|' \
		$(ROOT)/share/dbus-1/system-services/org.osctl1.service $(ROOT)/lib/systemd/system/osctl*.service
	d=$$(mktemp -d) && trap 'rm -rf "$$d"' EXIT && mkdir "$$d/man" "$$d/completions" && \
	$(SRC)/osctl internal-docs --man "$$d/man" --completions "$$d/completions" && \
	for f in "$$d"/man/*.[1-8]; do install -D -m 644 "$$f" "$(ROOT)/share/man/man$${f##*.}/$${f##*/}" || exit 1; done && \
	install -D -m 644 "$$d/completions/osctl.bash" $(ROOT)/share/bash-completion/completions/osctl && \
	install -D -m 644 "$$d/completions/_osctl" $(ROOT)/share/zsh/site-functions/_osctl && \
	install -D -m 644 "$$d/completions/osctl.fish" $(ROOT)/share/fish/vendor_completions.d/osctl.fish
	install -d $(ROOT)/lib/osctl
	ln -sfn /run/osctl/storage $(ROOT)/lib/osctl/storage
	mkdir -p $(ROOT)/lib/bootc
	[ -L $(ROOT)/lib/bootc/storage ] || ln -s /run/osctl/storage $(ROOT)/lib/bootc/storage
