"""Run LLM-EDT: ``python run_edt.py`` does everything on the built-in films; ``--help`` lists the stages."""

from recbole_edt.cli import main

if __name__ == "__main__":
    main()
