# `make` alone lists the targets. Servers come from scripts/services, with a Docker engine or without.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# RABBITMQ=3.10 or RABBITMQ=4: with that RabbitMQ instead of this machine's own, on servers beside the usual ones. With Docker, under
# another name and on other ports.
RABBITMQ ?=
ifneq ($(RABBITMQ),)
export OFFRAMP_SERVICES_RABBITMQ := $(RABBITMQ)
export OFFRAMP_SERVICES_DIR := $(CURDIR)/.services/rabbitmq-$(RABBITMQ)
export OFFRAMP_SERVICES_TOOLS := $(CURDIR)/.services/tools
export COMPOSE_PROJECT_NAME := offramp-rabbitmq-$(subst .,-,$(RABBITMQ))
beside := $(if $(filter 4,$(RABBITMQ)),3,4)
export RABBITMQ_PORT := 5$(beside)72
export RABBITMQ_ADMIN_PORT := 15$(beside)72
export MONGODB_PORT := 27$(beside)17
export SMTP_PORT := 1$(beside)25
export MAILPIT_PORT := 8$(beside)25
endif

# The settings of the running servers, for one command line.
with_services := settings=$$(scripts/services env) && eval "$$settings" &&

.PHONY: help
help: ## this list
	@echo "Offramp ends monthly subscriptions. Two commands to begin with: make demo, make test."
	@echo
	@awk -F ': *|## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$NF }' $(MAKEFILE_LIST)

.PHONY: demo
demo: cargo services-up ## start servers, build, and show a story of cancellations from message to mail
	@cargo build --locked --bin offramp --example demo
	@$(with_services) cargo run --quiet --locked --example demo

.PHONY: test
test: cargo services-up ## start servers, run every test against them, unit and integration; then a minute of chaos (RABBITMQ=4 or 3.10: with that one)
	@$(with_services) INSTA_UPDATE=no INSTA_REQUIRE_FULL_MATCH=1 cargo test --workspace --locked
	@$(MAKE) --no-print-directory chaos SECONDS=60 PROFILE=dev

# The servers of `make chaos`, which kills them: none but its own. With Docker, under another name and on other ports.
chaos_services := export OFFRAMP_SERVICES_DIR=$(CURDIR)/.services/chaos OFFRAMP_SERVICES_TOOLS=$(CURDIR)/.services/tools \
	COMPOSE_PROJECT_NAME=offramp-chaos RABBITMQ_PORT=5772 RABBITMQ_ADMIN_PORT=15772 MONGODB_PORT=27117 SMTP_PORT=1125 \
	MAILPIT_PORT=8125 &&
SECONDS ?= 300
SEED ?=
PROFILE ?= release
PROGRAM ?=

.PHONY: chaos
chaos: cargo ## break everything for SECONDS=300, then look for what was lost or done twice (SEED=… again; PROGRAM=path/to/offramp: another build)
	@$(chaos_services) trap 'scripts/services down' EXIT && scripts/services up && $(with_services) \
	cargo test --locked --profile $(PROFILE) --test chaos -- --seconds $(SECONDS) $(addprefix --seed ,$(SEED)) $(addprefix --program ,$(PROGRAM)) --logs .services/chaos/log

# The servers of `make bench`, so that nothing else makes them work while it measures.
bench_services := export OFFRAMP_SERVICES_DIR=$(CURDIR)/.services/bench OFFRAMP_SERVICES_TOOLS=$(CURDIR)/.services/tools \
	COMPOSE_PROJECT_NAME=offramp-bench RABBITMQ_PORT=5872 RABBITMQ_ADMIN_PORT=15872 MONGODB_PORT=27217 SMTP_PORT=1225 \
	MAILPIT_PORT=8225 &&
WHAT ?=
N ?=
BESIDE ?=

.PHONY: bench
bench: cargo ## measure a release build on servers of its own (WHAT=latency that alone; N=500 nothing larger; BESIDE=path/to/offramp: beside another build)
	@$(bench_services) trap 'scripts/services down' EXIT && scripts/services up && $(with_services) \
	cargo bench --locked --profile $(PROFILE) --bench measure -- $(WHAT) $(addprefix --n ,$(N)) $(addprefix --beside ,$(BESIDE)) --logs .services/bench/log

ONLY ?=

.PHONY: mail-audit
mail-audit: cargo ## look at every mail with Chromium, axe-core and SpamAssassin (ONLY=fr-CA/payment: only these)
	@scripts/mail-audit $(addprefix --only ,$(ONLY))

# libFuzzer's instrumentation exists in nightly compilers only; RUSTC_BOOTSTRAP=1 makes a stable one take it.
TARGET ?= command

.PHONY: fuzz
fuzz: cargo ## feed the command parser what a fuzzer thinks of, for SECONDS=300 (TARGET=frames: the filter of what RabbitMQ sends)
	@command -v cargo-fuzz >/dev/null || { echo "cargo-fuzz is missing: cargo install --locked cargo-fuzz" >&2; exit 1; }
	@[ -n "$${RUSTC_BOOTSTRAP:-}" ] || [[ $$(rustc --version) == *nightly* ]] || { \
	  echo "Fuzzing needs a nightly compiler: RUSTUP_TOOLCHAIN=nightly make fuzz (or RUSTC_BOOTSTRAP=1 make fuzz)" >&2; exit 1; }
	@cp Cargo.lock fuzz/Cargo.lock # the program's own dependencies, to the version
	@mkdir -p fuzz/corpus/$(TARGET)
	cargo fuzz run --sanitizer none $(TARGET) fuzz/corpus/$(TARGET) $(if $(filter command,$(TARGET)),schemas/examples/commands) -- \
	  -max_total_time=$(SECONDS) -max_len=270000 -timeout=10

.PHONY: check
check: cargo ## formatting, lints and documentation, each without a warning
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked

.PHONY: lint
lint: cargo ## spelling, shell scripts, unused dependencies, and the licences and sources of all dependencies
	@scripts/lint

.PHONY: schemas
schemas: cargo ## write schemas/ anew from the types in the code
	cargo run --quiet --locked -- schemas --write schemas

.PHONY: docs
docs: cargo ## write the generated pages of docs/ anew from the code
	UPDATE_DOCS=1 cargo test --quiet --locked --lib --bins documentation

.PHONY: services-up
services-up: ## start RabbitMQ, MongoDB and a mail server (those that do not run yet)
	@scripts/services up

.PHONY: services-down
services-down: ## stop them; their data stays
	@scripts/services down

.PHONY: cargo
cargo:
	@command -v cargo >/dev/null || { \
	  echo "Rust is missing. The shortest way to it is https://rustup.rs; rust-version in Cargo.toml tells the oldest that works." >&2; \
	  exit 1; }
	@command -v cc >/dev/null || { \
	  echo "A C compiler and linker is missing. On Debian, as root: apt-get install build-essential" >&2; exit 1; }
