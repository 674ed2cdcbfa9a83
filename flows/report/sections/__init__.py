"""The sections of the page of a run, one a module and template; `page.py` lists them in order."""
