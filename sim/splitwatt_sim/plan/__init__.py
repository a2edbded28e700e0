"""`splitwatt plan`: how many servers of which GPU, in which pools, under which caps."""
