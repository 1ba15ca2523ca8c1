/** The fields of the form: each shows a part of the spec, its help, and the errors that the service found in it. */
import { type ReactNode, useEffect, useId, useRef, useState } from "react";
import type { Schemas } from "../../api/client";
import { Sentence } from "../../components/sentence";
import { counted } from "../../lib/number";

type SpecError = Schemas["Problem"];

/** Fields that most jobs leave alone. Opens by itself when one of them has an error, so that no error is hidden. */
export function Fold({ title, set, errors, children }: { title: string; set: number; errors: number; children: ReactNode }) {
  const details = useRef<HTMLDetailsElement>(null);
  useEffect(() => {
    if (errors > 0 && details.current) details.current.open = true;
  }, [errors]);
  return (
    <details ref={details} className="more-fields">
      <summary>
        {title}
        {set > 0 ? `, ${counted(set, "value")} set` : ""}
      </summary>
      <div className="fields">{children}</div>
    </details>
  );
}

export interface FieldProps {
  value: string;
  errors: SpecError[];
  disabled: boolean;
  set: (typed: string) => void;
}

export function Parameter({ param, ...rest }: { param: Schemas["RecipeParameter"] } & FieldProps) {
  const defaultText = param.default === null || param.default === undefined ? "" : String(param.default);
  const range = param.minimum !== null && param.maximum !== null ? ` ${param.minimum} to ${param.maximum}.` : "";
  const help = `${param.help}${range}`;
  if (param.choices) return <Choice label={param.name} help={help} options={param.choices.map(String)} defaultOption={defaultText} {...rest} />;
  if (param.type === "bool") return <Choice label={param.name} help={help} options={["true", "false"]} defaultOption={defaultText} {...rest} />;
  return <Field label={param.name} help={help} placeholder={defaultText} inputMode={param.type === "str" ? "text" : "decimal"} {...rest} />;
}

export function Field({ label, help, value, errors, disabled, set, suggestions = [], wide = false, ...input }: {
  label: string;
  help: string;
  suggestions?: { value: string; label: string }[];
  wide?: boolean;
  type?: string;
  min?: number;
  placeholder?: string;
  inputMode?: "decimal" | "text";
} & FieldProps) {
  // The text stays as typed while the field has focus; the spec may hold it in another notation.
  const [draft, setDraft] = useState<string | null>(null);
  return (
    <Labelled label={label} help={help} errors={errors} wide={wide}>
      {(ids) => (
        <>
          <input
            {...ids}
            {...input}
            autoComplete="off"
            disabled={disabled}
            list={suggestions.length > 0 ? `${ids.id}-suggestions` : undefined}
            value={draft ?? value}
            onBlur={() => setDraft(null)}
            onChange={(event) => {
              setDraft(event.target.value);
              set(event.target.value);
            }}
          />
          {suggestions.length > 0 && (
            <datalist id={`${ids.id}-suggestions`}>
              {suggestions.map((one) => (
                <option key={one.value} value={one.value}>
                  {one.label}
                </option>
              ))}
            </datalist>
          )}
        </>
      )}
    </Labelled>
  );
}

export function Choice({ label, help, options, defaultOption, value, errors, disabled, set }: {
  label: string;
  help: string;
  options: string[];
  defaultOption?: string;
} & FieldProps) {
  return (
    <Labelled label={label} help={help} errors={errors}>
      {(ids) => (
        <select {...ids} disabled={disabled} value={value} onChange={(event) => set(event.target.value)}>
          <option value="">{defaultOption ?? options[0]} (default)</option>
          {options.map((one) => (
            <option key={one} value={one}>
              {one}
            </option>
          ))}
          {value !== "" && !options.includes(value) && <option value={value}>{value}</option>}
        </select>
      )}
    </Labelled>
  );
}

function Labelled({ label, help, errors, wide = false, children }: {
  label: string;
  help: string;
  errors: SpecError[];
  wide?: boolean;
  children: (ids: { id: string; "aria-describedby": string; "aria-invalid": boolean }) => ReactNode;
}) {
  const id = useId();
  return (
    <div className={wide ? "field wide" : "field"}>
      <label htmlFor={id}>{label}</label>
      {children({ id, "aria-describedby": `${id}-help`, "aria-invalid": errors.length > 0 })}
      <p id={`${id}-help`} className={errors.length > 0 ? "field-error" : "help"}>
        {errors.length > 0 ? <Sentence text={errors.map(({ message }) => message).join(" ")} /> : help}
      </p>
    </div>
  );
}
