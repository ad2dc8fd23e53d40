"""What tests share: scripted models, servers, browsers, programs."""
