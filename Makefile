# Every target does its own set-up. Downloads and builds of foreign tools are cached in $(LAPWING_CACHE), outside the tree.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
export LAPWING_CACHE ?= $(if $(XDG_CACHE_HOME),$(XDG_CACHE_HOME),$(HOME)/.cache)/lapwing
CARGO_DENY_VERSION := 0.20.2
CARGO_CYCLONEDX_VERSION := 0.5.9

.DEFAULT_GOAL := help

.PHONY: help
help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

.PHONY: demo
demo: packages tools image release ## A real image through the swarm and lazily started, on several nodes; writes target/demo.json
	cargo run --release --quiet --package lapwing-demo

.PHONY: test
test: packages tools image ## Everything: unit, crate and whole-system tests (as root)
	contrib/setup/test.sh

.PHONY: test-long
test-long: ## What takes too long for every run: a download killed at 200 random moments, 50,000 blobs on one node, 50 kills under pulls, 100 images, 20 kills under 100 lazy mounts, a layer of 20 GB, each parser fuzzed for ten minutes, 1,050 odd layers and a directory of 100,000 names, tokens of a minute for ten
	LAPWING_TEST_KILLS=200 LAPWING_TEST_BLOBS=50000 cargo test --package lapwing-p2p --test node -- --nocapture killed thousands
	LAPWING_TEST_KILLS=50 LAPWING_TEST_IMAGES=100 cargo test --package lapwing --test killed --test many -- --nocapture
	LAPWING_TEST_KILLS=20 LAPWING_TEST_IMAGES=5 cargo test --package lapwing --test survive -- --nocapture
	LAPWING_TEST_LARGE_GB=20 cargo test --package lapwing-snapshotter --test large -- --nocapture
	LAPWING_TEST_FUZZ_SECONDS=600 cargo test --package lapwing-snapshotter --test hostile -- --nocapture fuzz
	LAPWING_TEST_FUZZ_SECONDS=600 cargo test --package lapwing-p2p --package lapwing-discovery --test wire --test calls -- --nocapture
	LAPWING_TEST_LAYERS=1050 LAPWING_TEST_CROWD=100000 LAPWING_TEST_SEED=1000 cargo test --package lapwing --test equality -- --nocapture generated
	LAPWING_TEST_TOKEN_SECONDS=60 LAPWING_TEST_TOKEN_ROUNDS=10 cargo test --package lapwing --test tokens -- --nocapture outlive

.PHONY: chaos
chaos: packages tools image ## The fault campaign, 20 checks (as root; CHECKS="1 4" SCALE=0.1 SEED=7); writes target/chaos.json
	cargo run --quiet --package lapwing-chaos --bin chaos -- --seed $(or $(SEED),1) --scale $(or $(SCALE),1) $(CHECKS)

.PHONY: soak
soak: packages tools image ## A week of pulls on three nodes in MINUTES (120): memory, descriptors, threads and disk stay flat; writes target/soak.json
	cargo build --quiet --bin lapwing
	cargo run --quiet --package lapwing-chaos --bin soak -- $(or $(MINUTES),120)

.PHONY: lint
lint: packages deny ## Formatting, clippy, dependency rules, advisories where they can be reached, shell scripts
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	"$(LAPWING_CACHE)/deny/$(CARGO_DENY_VERSION)/bin/cargo-deny" --workspace check bans licenses sources
	contrib/setup/advisories.sh $(CARGO_DENY_VERSION)
	git ls-files '*.sh' .ci/run | xargs shellcheck

.PHONY: bench-index
bench-index: ## CPU and size of building a layer index, against plain decompression; writes target/bench/index.json
	@mkdir -p target/bench
	cargo run --release --quiet --package lapwing-bench --bin index | tee target/bench/index.json

.PHONY: bench-files
bench-files: ## Reading files of a lazily mounted layer, by EROFS and by FUSE, against the local filesystem (as root; MEASUREMENTS="stat_warm ..."); writes target/bench/files.json
	@mkdir -p target/bench
	cargo run --release --quiet --package lapwing-bench --bin files -- $(MEASUREMENTS) | tee target/bench/files.json

.PHONY: bench-lazy
bench-lazy: packages tools release ## Starts of real images against plain containerd, and files, index and memory (IMAGES="python tomcat tensorflow memory files index", REPEAT=3; the first run fetches 800 MB); writes target/bench/lazy.json
	contrib/setup/packages.sh zlib1g-dev # for SOCI
	contrib/setup/image.sh real service learning
	cargo build --release --quiet --package lapwing-bench --bins
	LAPWING_BIN="$${LAPWING_BIN:-$(CURDIR)/target/release/lapwing}" cargo run --release --quiet --package lapwing-bench --bin lazy -- $(IMAGES)

.PHONY: bench-swarm
bench-swarm: packages release ## Swarms of real nodes against the bound (SCENARIOS="cold8 ...", REPEAT=3); writes target/bench/swarm.json
	cargo run --release --quiet --package lapwing-bench --bin swarm -- $(SCENARIOS)

.PHONY: bench-get
bench-get: packages release nginx ## lapwing get against curl, without a node, by the first and by the second; writes target/bench/get.json
	@mkdir -p target/bench
	LAPWING_NGINX="$(LAPWING_CACHE)/nginx/usr/sbin/nginx" LAPWING_BIN="$${LAPWING_BIN:-$(CURDIR)/target/release/lapwing}" \
		cargo run --release --quiet --package lapwing-bench --bin get | tee target/bench/get.json

.PHONY: bench-peers
bench-peers: packages tools release nginx ## The same work by Lapwing, other systems and plain containerd (SYSTEMS="spegel lapwing" WORK="cold8", REPEAT=3; builds the others, once, from what their authors published); writes target/bench/peers.json
	contrib/setup/packages.sh g++ cmake protobuf-compiler libprotobuf-dev libclang-dev # for Dragonfly's client
	LAPWING_NGINX="$(LAPWING_CACHE)/nginx/usr/sbin/nginx" LAPWING_BIN="$${LAPWING_BIN:-$(CURDIR)/target/release/lapwing}" cargo run --release --quiet --package lapwing-bench --bin peers -- $(SYSTEMS) $(WORK)

.PHONY: bench-charts
bench-charts: ## Puts what bench-peers and bench-lazy wrote into docs/benchmarks.md, as tables and charts
	cargo run --release --quiet --package lapwing-bench --bin charts

.PHONY: bench-wire
bench-wire: release nginx ## Piece wire against nginx with sendfile, and memory with 32 peers; writes target/bench/wire.json
	@mkdir -p target/bench
	LAPWING_NGINX="$(LAPWING_CACHE)/nginx/usr/sbin/nginx" \
		cargo run --release --quiet --package lapwing-bench --bin wire | tee target/bench/wire.json

.PHONY: bench-tracker
bench-tracker: packages release ## The tracker with 100,000 nodes and 20 million entries, against Redis; writes target/bench/tracker.json
	@mkdir -p target/bench
	cargo run --release --quiet --package lapwing-bench --bin tracker | tee target/bench/tracker.json

.PHONY: bench-sim
bench-sim: ## The scheduler and the tracker in simulated time, up to 10,000 nodes; writes target/bench/sim.json
	@mkdir -p target/bench
	cargo run --release --quiet --package lapwing-sim | tee target/bench/sim.json

.PHONY: release
release: ## The optimised binary, target/release/lapwing
	cargo build --release --bin lapwing

.PHONY: deb
deb: $(if $(BINARY),,release) ## A Debian package, target/package/*.deb (BINARY=path packs another program)
	contrib/package/deb.sh $(BINARY)

.PHONY: rpm
rpm: $(if $(BINARY),,release) ## An RPM package, target/package/*.rpm
	@command -v rpmbuild >/dev/null || { echo "rpmbuild is missing: apt-get install rpm" >&2; exit 1; }
	contrib/package/rpm.sh $(BINARY)

.PHONY: oci-image
oci-image: $(if $(BINARY),,release) ## A container image as an OCI layout, target/package/*-oci.tar, without a daemon
	contrib/package/oci.sh $(BINARY)

.PHONY: sbom
sbom: ## Which crates the binary is made of, as CycloneDX: target/package/lapwing.cdx.json
	contrib/setup/sbom.sh $(CARGO_CYCLONEDX_VERSION)

.PHONY: packages tools image deny nginx
packages: ## Install the distribution's packages that tests and demo use
	contrib/setup/packages.sh
tools: ## Build the pinned containerds, nerdctl, crictl, dockerd and S3 server, once
	contrib/setup/tools.sh || [ $$? = 3 ] # 3: no Go here, and it has said what follows
	contrib/setup/s3.sh || [ $$? = 3 ]
	contrib/setup/module.sh containerd17 || [ $$? = 3 ]
	contrib/setup/module.sh dockerd || [ $$? = 3 ]
	contrib/setup/module.sh kubernetes || [ $$? = 3 ]
	contrib/setup/module.sh prometheus || [ $$? = 3 ]
image: ## Build the images that tests and demo pull, once
	contrib/setup/image.sh
deny: ## Build the pinned cargo-deny, once
	contrib/setup/deny.sh $(CARGO_DENY_VERSION)
nginx: ## Fetch the distribution's nginx for the benchmark, once, without installing it
	contrib/setup/nginx.sh
