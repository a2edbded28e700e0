"""What a served cluster proves of itself: rules about engines' counters, before and after a request of ours."""
