# Everything is done by deploy/setup.py, which sets up what is missing first. See CONTRIBUTING.md.
.PHONY: setup demo test check bench mutants up clean
setup: ; @python3 deploy/setup.py setup
demo: ; @python3 deploy/setup.py demo
test: ; @python3 deploy/setup.py test
check: ; @python3 deploy/setup.py check
bench: ; @python3 deploy/setup.py bench
mutants: ; @python3 deploy/setup.py mutants
up: ; @python3 deploy/setup.py up
clean: ; @python3 deploy/setup.py clean
