"""When tasks are polled, and what their answers mean."""
