# Two commands. Each is enough on its own: it sets up .venv when that is missing or out of date.
#   make book   executes the chapters and builds the site in _build/html
#   make test   checks the library, the chapters and the built site
# And two more, for the chapters as notebooks:
#   make editions   writes them in plain Markdown to _build/editions/notebook
#   make lab        opens copies of these in JupyterLab, in the folder lab; ARGS="--port 9000" is passed on
PYTHON ?= python3

.PHONY: book test editions lab
book:
	$(PYTHON) tools/environment.py tools/build_book.py

test:
	$(PYTHON) tools/environment.py --test -m pytest --numprocesses 2

editions:
	$(PYTHON) tools/environment.py tools/editions.py

lab:
	$(PYTHON) tools/environment.py tools/lab.py $(ARGS)
