import react from "@vitejs/plugin-react";
import { defineConfig } from "vite";

// `npm run dev` beside a running `shoestring up`.
const api = "http://127.0.0.1:8000";

export default defineConfig({
  plugins: [react()],
  build: {
    outDir: "../api/shoestring_api/static",
    emptyOutDir: true,
    target: "es2022",
    // One file for the shell, one for what only a job's page needs, one for the form: nobody signs in to download a parser.
    chunkSizeWarningLimit: 350,
  },
  server: { proxy: { "/v1": api, "/objects": api } },
});
