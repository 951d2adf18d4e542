# Everything that a developer or a CI job does with this repository.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.SUFFIXES:
MAKEFLAGS += --no-builtin-rules --no-print-directory

BIN := $(CURDIR)/bin
# Distributions put runc in sbin, which is not on every user's PATH.
export PATH := $(BIN):$(PATH):/usr/local/sbin:/usr/sbin:/sbin

# ONLY=name narrows test and bench to the names that match it.
ONLY ?=
# Revision whose contracts `make lint` holds the present ones against.
BREAKING_AGAINST ?=
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)

MODULES := proto pkg pkg/buildkitd services/builder services/cachemanager services/janitor services/kiln examples/go-client e2e
# The generators stand outside the workspace: what they need, no service gets.
ALL_MODULES := $(MODULES) tools/gen
UNIT_PACKAGES := $(addprefix ./,$(addsuffix /...,$(filter-out e2e,$(MODULES))))
COMMANDS := $(addprefix ./services/,$(addsuffix /cmd/...,builder cachemanager janitor kiln))
LDFLAGS := -X github.com/kilnbuild/kiln/pkg/service.version=$(VERSION)

.PHONY: help
help: ## List the targets
	@awk 'BEGIN { FS = ":.*## " } /^[a-z-]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# ---- tools -------------------------------------------------------------------
# The go.mod of each module in tools/ is the pin. A module is built again when
# its go.mod or go.sum is newer than its binaries.

BUILDKIT_TOOLS := $(addprefix $(BIN)/,buildkitd buildctl)
REGISTRY_TOOLS := $(BIN)/registry
DEV_TOOLS := $(addprefix $(BIN)/,buf grpcurl protoc-gen-go protoc-gen-go-grpc)
GEN_TOOLS := $(addprefix $(BIN)/,protodeps protoc-gen-apidoc testsummary)
BUILDX := $(BIN)/buildx
TEST_FRONTEND := $(BIN)/dockerfile-frontend
S3_SERVER := $(BIN)/versitygw
COMPOSE := $(BIN)/docker-compose
JAEGER := $(BIN)/jaeger
TEST_TOOLS := $(COMPOSE) $(JAEGER) $(BUILDX) $(TEST_FRONTEND) $(S3_SERVER)
LINT_TOOLS := $(BIN)/golangci-lint

.PHONY: tools tools-test tools-lint
tools: $(BUILDKIT_TOOLS) $(REGISTRY_TOOLS) $(DEV_TOOLS) $(GEN_TOOLS) ## Build the pinned tools into bin/, install runc and busybox if missing
	@deploy/scripts/install-packages.sh
tools-test: tools $(TEST_TOOLS) ## The same, and what only the tests need
	@deploy/scripts/install-packages.sh test
tools-lint: $(DEV_TOOLS) $(GEN_TOOLS) $(LINT_TOOLS) ## What only the linters need

# $(call build-tools,module[,extra linker flags]): touch, because the Go command
# leaves a binary alone that is already what it would write.
define build-tools
	@echo "building $(notdir $@) and what is pinned beside it in tools/$(1)"
	@mkdir -p $(BIN)
	@GOWORK=off go -C tools/$(1) build -ldflags '-s -w $(2)' -o $(BIN)/ tool
	@touch $(3)
endef
pinned = $(shell awk '$$1 == "$(2)" { print $$2 }' tools/$(1)/go.mod)

$(BUILDKIT_TOOLS) &: tools/buildkit/go.mod tools/buildkit/go.sum
	$(call build-tools,buildkit,-X github.com/moby/buildkit/version.Version=$(call pinned,buildkit,github.com/moby/buildkit),$(BUILDKIT_TOOLS))
$(REGISTRY_TOOLS) &: tools/registry/go.mod tools/registry/go.sum
	$(call build-tools,registry,,$(REGISTRY_TOOLS))
$(DEV_TOOLS) &: tools/dev/go.mod tools/dev/go.sum
	$(call build-tools,dev,,$(DEV_TOOLS))
$(BUILDX) &: tools/buildx/go.mod tools/buildx/go.sum
	$(call build-tools,buildx,-X github.com/docker/buildx/version.Version=$(call pinned,buildx,github.com/docker/buildx),$(BUILDX))
$(S3_SERVER): tools/s3/go.mod tools/s3/go.sum
	$(call build-tools,s3,,$(S3_SERVER))
# Its command has no name of its own.
$(COMPOSE): tools/compose/go.mod tools/compose/go.sum
	@echo "building $(notdir $@), pinned in tools/compose"
	@mkdir -p $(BIN)
	@GOWORK=off go -C tools/compose build -ldflags '-s -w -X github.com/docker/compose/v2/internal.Version=$(call pinned,compose,github.com/docker/compose/v2)' -o $@ github.com/docker/compose/v2/cmd
	@touch $@
$(JAEGER): tools/jaeger/go.mod tools/jaeger/go.sum
	$(call build-tools,jaeger,,$(JAEGER))
# A frontend runs in an image of its own, in which there is nothing to link with.
$(TEST_FRONTEND): tools/buildkit/go.mod tools/buildkit/go.sum
	@echo "building $(notdir $@), pinned in tools/buildkit"
	@mkdir -p $(BIN)
	@CGO_ENABLED=0 GOWORK=off go -C tools/buildkit build -ldflags '-s -w' -o $@ github.com/moby/buildkit/frontend/dockerfile/cmd/dockerfile-frontend
	@touch $@
$(LINT_TOOLS) &: tools/lint/go.mod tools/lint/go.sum
	$(call build-tools,lint,,$(LINT_TOOLS))
$(GEN_TOOLS) &: tools/gen/go.mod tools/gen/go.sum $(wildcard tools/gen/*/*.go)
	@mkdir -p $(BIN)
	@GOWORK=off go -C tools/gen build -o $(BIN)/ ./...
	@touch $(GEN_TOOLS)

# ---- build and generate ------------------------------------------------------

.PHONY: build build-failpoints
build: ## Build every command into bin/, static
	@CGO_ENABLED=0 go build -trimpath -ldflags '$(LDFLAGS)' -o $(BIN)/ $(COMMANDS)

# The services that tests kill at their failpoints, or whose clock they move.
build-failpoints:
	@CGO_ENABLED=0 go build -trimpath -tags failpoints -ldflags '$(LDFLAGS)' -o $(BIN)/failpoints/ ./services/builder/cmd/... ./services/cachemanager/cmd/... ./services/janitor/cmd/...

.PHONY: generate
generate: $(DEV_TOOLS) $(GEN_TOOLS) ## Write the generated code and docs/api from the contracts
	@protodeps proto/third_party
	@buf generate

# ---- checks ------------------------------------------------------------------

.PHONY: lint lint-go lint-proto lint-generated lint-modules
lint: lint-proto lint-generated lint-modules lint-go ## Check style, layering, contracts, generated code and modules

lint-go: $(LINT_TOOLS)
	@golangci-lint run --allow-parallel-runners $(addprefix ./,$(addsuffix /...,$(MODULES)))
	@cd tools/gen && GOWORK=off golangci-lint run --allow-parallel-runners ./...

lint-proto: $(DEV_TOOLS)
	@buf lint
	@buf format --diff --exit-code --path proto/kiln
	@BREAKING_AGAINST='$(BREAKING_AGAINST)' deploy/scripts/check-breaking.sh

lint-generated: $(DEV_TOOLS) $(GEN_TOOLS)
	@tmp=$$(mktemp -d); trap 'rm -rf "$$tmp"' EXIT; \
	protodeps "$$tmp/proto/third_party"; \
	buf generate --output "$$tmp"; \
	for dir in proto/third_party proto/gen docs/api; do \
		diff -ru "$$dir" "$$tmp/$$dir" || { echo "$$dir is not what the contracts say: run 'make generate'" >&2; exit 1; }; \
	done

# Each module must build alone, with the versions of its own go.mod.
lint-modules:
	@for module in $(ALL_MODULES); do \
		GOWORK=off go -C $$module mod tidy -diff || { echo "$$module: run 'GOWORK=off go mod tidy' there" >&2; exit 1; }; \
		GOWORK=off go -C $$module build ./...; \
	done

GOTEST := go test -race -count=1 -json $(if $(ONLY),-run '$(ONLY)')

.PHONY: test
test: tools-test build build-failpoints ## Run every test, with -race, on real daemons; ONLY=name for some
	@rc=0; { \
		$(GOTEST) -timeout 10m $(UNIT_PACKAGES) || rc=1; \
		(cd tools/gen && GOWORK=off $(GOTEST) -timeout 10m ./...) || rc=1; \
		(cd e2e && $(GOTEST) -p 1 -timeout 60m ./...) || rc=1; \
		exit $$rc; \
	} | testsummary

# The tests that go on for long: an hour or so. A row for each in .run/soak.json.
SOAKS := TestS4_PlansComeTrue|TestS4_DaemonRulesComeTrue|TestS4_BuildsGoOnWhileEverythingIsPruned|TestS5_NothingBreaksUnderLoad

.PHONY: soak
soak: tools-test build build-failpoints ## Run the property and load tests for long; SOAK_ROUNDS=1000 SOAK_TIME=10m
	@mkdir -p .run && rm -f .run/soak.json
	@cd e2e && KILN_SOAK_FILE=$(CURDIR)/.run/soak.json KILN_SOAK_ROUNDS=$(or $(SOAK_ROUNDS),1000) KILN_SOAK_TIME=$(or $(SOAK_TIME),10m) \
		go test -count=1 -timeout 6h -v -run '$(or $(ONLY),$(SOAKS))' .
	@KILN_SOAK_ROUNDS=$(or $(SOAK_ROUNDS),1000) go test -count=1 -timeout 6h -run TestRuns_RemoveNothingThatTheModelKeeps ./services/janitor/internal/enforce
	@cat .run/soak.json

# ---- install -------------------------------------------------------------------
# As distributions expect it: DESTDIR=/tmp/package for a package; without it the users and
# directories are made, too. Nothing is started, and no file of /etc/kiln is overwritten.

PREFIX ?= /usr/local
DESTDIR ?=

.PHONY: install uninstall
install: ## Install the commands, units, users and configuration; PREFIX=/usr/local DESTDIR=
	@DESTDIR='$(DESTDIR)' PREFIX='$(PREFIX)' deploy/scripts/install.sh install

uninstall: ## Remove what install installed; configuration and state stay
	@DESTDIR='$(DESTDIR)' PREFIX='$(PREFIX)' deploy/scripts/install.sh uninstall

.PHONY: images
images: tools build ## Build the services' images with Kiln; IMAGES=kiln, or a repository to push to
	@IMAGES='$(or $(IMAGES),kiln)' VERSION='$(VERSION)' deploy/scripts/images.sh

# ---- demo, benchmarks --------------------------------------------------

.PHONY: demo
demo: tools build ## Build the sample cold, again, and from the registry cache, beside the guide and buildctl
	@go build -o $(BIN)/kiln-demo ./e2e/cmd/demo
	@kiln-demo

.PHONY: bench
bench: tools-test build ## Measure against buildctl and BuildKit's Go client; ONLY=name for one
	@go build -o $(BIN)/kiln-bench ./e2e/cmd/bench
	@kiln-bench $(if $(ONLY),--only '$(ONLY)')

.PHONY: clean
clean: ## Remove bin/ and .run/
	@rm -rf $(BIN) .run
