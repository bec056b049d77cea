# `make` alone lists the targets.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help run test check bench edge clean rust

# rustup's folder, for shells that were open before it was installed.
export PATH := $(PATH):$(HOME)/.cargo/bin
TARGET := $(or $(CARGO_TARGET_DIR),target)
# What scripts/setup found: LUCENT_NATS_SERVER and the like.
WITH_TOOLS = eval "$$(scripts/setup env)"; export PATH="$$(scripts/setup path):$$PATH"

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-7s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

run: rust ## a whole four-level mesh on this machine (ARGS="--for 30s" passes flags to `agent dev`)
	@scripts/setup nats
	@cargo build --release -p agent
	@$(WITH_TOOLS); exec "$(TARGET)/release/agent" dev $(ARGS)

test: rust ## all tests, on real servers (ARGS=name runs only the tests with that in their name)
	@scripts/test $(ARGS)

check: rust ## formatting, lints, and the rules that no compiler knows
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	cargo clippy -p agent --no-default-features -- -D warnings
	scripts/check-dependencies
	scripts/check-words
	scripts/check-generated
	scripts/check-scripts

bench: rust ## measure throughput and latency (ARGS passes flags to `agent bench`)
	@scripts/setup nats
	@cargo build --release -p agent
	@$(WITH_TOOLS); exec "$(TARGET)/release/agent" bench $(ARGS)

edge: rust ## the small binary for edge hardware, and its size
	@cargo build --profile edge -p agent --no-default-features
	@printf '%s: %s bytes\n' "$(TARGET)/edge/agent" "$$(wc -c <"$(TARGET)/edge/agent" | tr -d ' ')"

clean: ## remove what was built here (scripts/setup's cache stays)
	cargo clean

rust:
	@command -v cargo >/dev/null || { echo "cargo is missing: install Rust from https://rustup.rs" >&2; exit 1; }
	@command -v cc >/dev/null || { echo "a C compiler is missing: install gcc or clang" >&2; exit 1; }
