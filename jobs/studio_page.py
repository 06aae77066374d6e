"""What Streamlit runs for whoever opens the page of `pairstream studio RUN`, again at every change of an input."""

from __future__ import annotations

import sys

import streamlit as st

from jobs.studio import opened
from pipeline.studio.page import show

show(st.cache_resource(opened, show_spinner=False)(sys.argv[1]))
