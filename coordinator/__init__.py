"""Plans, conducts, stores and reports a run. It never sees an image; it could not open one."""
