// Generates TypeScript and Python models from schemas/asyncapi.yaml as a user would, and checks them: every class has a name that says
// what it is, TypeScript's compiler accepts the one, and Python the other.
//
//     npm install --prefix DIR --no-save @asyncapi/modelina@5 typescript@5
//     NODE_PATH=DIR/node_modules node scripts/models-trial.cjs [OUTPUT]
//
// These packages take 250 MB and minutes, so this runs in the hosted workflow and not with the tests.
const { execFileSync } = require("node:child_process");
const fs = require("node:fs");
const os = require("node:os");
const path = require("node:path");
const { pathToFileURL } = require("node:url");
const { PythonGenerator, TypeScriptGenerator } = require("@asyncapi/modelina");
const typescript = require("typescript");

const output = process.argv[2] ?? fs.mkdtempSync(path.join(os.tmpdir(), "offramp-models-"));
const specification = pathToFileURL(path.join(__dirname, "../schemas/asyncapi.yaml")).href;

async function generate(language, generator, extension, text) {
  const folder = path.join(output, language);
  fs.mkdirSync(folder, { recursive: true });
  const generated = await generator.generateCompleteModels(specification, text);
  // The choice between replies is a type of its own, which Python does without.
  const models = generated.filter((model) => model.modelName !== "");
  const names = models.map((model) => model.modelName);
  if (names.length < 20) throw new Error(`${language}: asyncapi.yaml was not understood: ${names.join(", ")}`);
  for (const model of models) fs.writeFileSync(path.join(folder, `${model.modelName}.${extension}`), model.result);
  const nameless = names.filter((name) => /anonymous|\d$/i.test(name));
  if (nameless.length > 0) throw new Error(`${language}: classes without a name: ${nameless.join(", ")}`);
  if (new Set(names).size !== names.length) throw new Error(`${language}: two classes of one name: ${names.join(", ")}`);
  console.log(`${language}: ${names.length} classes: ${names.sort().join(", ")}`);
  return models.map((model) => path.join(folder, `${model.modelName}.${extension}`));
}

async function main() {
  const typed = await generate("typescript", new TypeScriptGenerator(), "ts", { moduleSystem: "ESM", exportType: "named" });
  const options = { strict: true, noEmit: true, skipLibCheck: true, target: typescript.ScriptTarget.ES2022, types: [] };
  const problems = typescript.getPreEmitDiagnostics(typescript.createProgram(typed, options));
  if (problems.length > 0) {
    const host = { getCanonicalFileName: (name) => name, getCurrentDirectory: () => output, getNewLine: () => "\n" };
    throw new Error(typescript.formatDiagnostics(problems, host));
  }
  const python = await generate("python", new PythonGenerator(), "py", { packageName: "offramp" });
  execFileSync("python3", ["-m", "py_compile", ...python], { stdio: "inherit" });
  console.log(`accepted; they are in ${output}`);
}

main().catch((error) => {
  console.error(error.message);
  process.exit(1);
});
