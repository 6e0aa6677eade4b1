# Two commands. Each is enough on its own: it sets up .venv when that is missing or out of date.
#   make book   executes the chapters and builds the site in _build/html
#   make test   checks the library, the chapters and the built site
PYTHON ?= python3

.PHONY: book test
book:
	$(PYTHON) tools/environment.py tools/build_book.py

test:
	$(PYTHON) tools/environment.py --test -m pytest --numprocesses 2 --dist loadgroup --no-loadscope-reorder
