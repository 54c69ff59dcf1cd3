"""How much memory an artifact takes in a runtime: predicted from headers, measured in a child process, judged."""
