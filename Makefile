# crpipe. The targets a newcomer needs: demo, test, build, install.
SHELL       := /bin/bash -o pipefail
GO          ?= go
PREFIX      ?= /usr/local
BINDIR      ?= $(PREFIX)/bin
MANDIR      ?= $(PREFIX)/share/man
VERSION     ?=
TESTFLAGS   ?=
PACKAGES    ?= ./...
FUZZTIME    ?= 30s
FAILED      ?=
BENCHFLAGS  ?=
GOLANGCI    ?= github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0

COMMANDS    := cr-freeze cr-dump cr-filter cr-restore cr-thaw
LDFLAGS     := -s -w $(if $(VERSION),-X crpipe/cmd/internal/cli.Version=$(VERSION))
LINUX_ARCHS := amd64 386 arm64 s390x ppc64le

VMRUN       ?=
VMPACKAGES  ?=
VMFLAGS     ?=

.PHONY: all build demo test btf vm vm-6.1 vm-6.12 vm-quick vm-quick-6.1 vm-quick-6.12 stress servers skips vet vet-all cross lint fuzz bench install uninstall clean packages

all: build

build: ## the five commands, static, in bin/
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/ $(addprefix ./cmd/,$(COMMANDS))

demo: build ## a program is checkpointed, killed, and goes on (as root or as an ordinary user)
	tools/demo.sh bin

packages: ## the Debian packages that tests run (as root with apt; elsewhere it names what is missing)
	tools/packages.sh

# The same whoever runs it. What cannot run here is skipped and listed; with
# CI=1 a skip that .ci/may-skip does not name is a failure.
# One package after the other (-p 1): tests freeze, kill and time real processes, and a busy machine is another machine.
test: packages vet ## all tests
	$(GO) test -json -p 1 -timeout 75m $(TESTFLAGS) $(PACKAGES) | $(GO) run ./tools/skips $(if $(CI),-may-skip .ci/may-skip) $(if $(FAILED),-failed $(FAILED))

vm: vm-6.1 vm-6.12 ## the tests on Debian's older kernels, emulated (root on Debian; see CONTRIBUTING.md)

# VMRUN chooses tests as go test -run does, VMPACKAGES packages, VMFLAGS more of what tools/vm knows.
vm-6.1 vm-6.12: packages
	$(GO) run ./tools/vm $(if $(VMRUN),-run '$(VMRUN)') $(VMFLAGS) $(@:vm-%=%) $(VMPACKAGES) | \
		$(GO) run ./tools/skips -may-skip tools/vm/may-skip-$(@:vm-%=%) $(if $(FAILED),-failed $(FAILED))

vm-quick: btf vm-quick-6.1 vm-quick-6.12 ## of these what reads the kernel's memory, and every fixture dumped and restored once (an hour)

vm-quick-6.1 vm-quick-6.12: packages
	$(GO) run ./tools/vm -skip '^TestCacheDamage$$' $(VMFLAGS) $(@:vm-quick-%=%) ./engine/internal/kernelview \
			'./test=^TestFixtures$$/./^kill-restore$$|^TestCompat$$/^compat$$/^kill-restore$$' | \
		$(GO) run ./tools/skips -may-skip tools/vm/may-skip-$(@:vm-quick-%=%) $(if $(FAILED),-failed $(FAILED))

btf: ## every structure of the kernel that is read, looked up in the types of Debian's other kernels (a minute; root on Debian)
	@dir=$$(mktemp -d) && trap 'rm -r "$$dir"' EXIT && for kernel in 6.1 6.12; do \
		$(GO) run ./tools/vm -btf "$$dir/$$kernel" $$kernel || exit 1; done && \
	CRPIPE_TEST_BTF="$$dir/*" $(GO) test -count=1 -run '^TestResolveKernels$$' ./engine/internal/kernelview

stress: ## kill -9 of each command 300 times at random moments, every failpoint every way, 10,000 threads (root; most of an hour)
	CRPIPE_KILLS=300 CRPIPE_THREADS=10000 CRPIPE_FAILPOINTS=all $(GO) test -count=1 -timeout 3h -v ./test -run '^TestKilled|^TestFailpoints$$|^TestCrowd$$|^TestFullPids$$'

servers: ## every server under load and every real program, checkpointed 20 times each way at random moments (root; half an hour)
	CRPIPE_ROUNDS=20 CR_TEST_MOMENTS=20 $(GO) test -count=1 -timeout 3h -v ./test -run '^TestServers$$|^TestRealPrograms$$'

skips: ## the tests that are skipped on this machine, and why
	-$(GO) test -json -p 1 -timeout 75m $(TESTFLAGS) $(PACKAGES) | $(GO) run ./tools/skips -only

vet:
	$(GO) vet ./...
	$(GO) vet -tags failpoints ./engine/... ./cmd/...

vet-all: ## vet for every architecture, and what must build elsewhere
	@failed=; for arch in $(LINUX_ARCHS); do \
		echo "vet linux/$$arch"; CGO_ENABLED=0 GOOS=linux GOARCH=$$arch $(GO) vet ./... || failed=1; \
	done; test -z "$$failed"
	$(MAKE) cross

cross: ## cr-filter, stream and arch for systems without checkpoints
	@for os in darwin windows; do \
		echo "build $$os/amd64"; \
		CGO_ENABLED=0 GOOS=$$os GOARCH=amd64 $(GO) vet ./stream/... ./arch/... ./cmd/internal/cli ./cmd/cr-filter || exit 1; \
		CGO_ENABLED=0 GOOS=$$os GOARCH=amd64 $(GO) build -o /dev/null ./cmd/cr-filter || exit 1; \
	done

lint: ## formatting and golangci-lint (fetched by go run; nothing of it is in go.mod)
	@unformatted=$$(gofmt -l $$(find . -name '*.go' -not -path './.git/*')); test -z "$$unformatted" || { echo "gofmt would change:"; echo "$$unformatted"; exit 1; }
	$(GO) run $(GOLANGCI) run

fuzz: ## every fuzz target for FUZZTIME
	tools/fuzz.sh $(FUZZTIME)

bench: ## dump and restore beside the raw limits of the same run (root)
	$(GO) run ./bench $(BENCHFLAGS)

install: build
	install -d $(DESTDIR)$(BINDIR) $(DESTDIR)$(MANDIR)/man1 $(DESTDIR)$(MANDIR)/man5 $(DESTDIR)$(MANDIR)/man7
	install -m 755 $(addprefix bin/,$(COMMANDS)) $(DESTDIR)$(BINDIR)
	for section in 1 5 7; do install -m 644 man/*.$$section $(DESTDIR)$(MANDIR)/man$$section || exit 1; done

uninstall:
	for command in $(COMMANDS); do rm -f $(DESTDIR)$(BINDIR)/$$command; done
	for page in man/*.[157]; do rm -f $(DESTDIR)$(MANDIR)/man$${page##*.}/$${page##*/}; done

clean:
	rm -rf bin
