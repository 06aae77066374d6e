"""A page on which a trained model is asked: any modalities in, all others out, latent dimensions to drag.

The only folder that knows Streamlit, which runs the page's functions from the top at every change.
"""
